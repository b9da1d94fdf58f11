//! The links of a worker's stages to their neighbours in the pipeline: tasks that move frames, and decide nothing.

mod accept;
mod downstream;
mod news;
mod stage_links;
mod upstream;

pub(crate) use self::{
    accept::{accept_links, accept_neighbours},
    downstream::DownstreamLink,
    news::{LinkId, LinkNews},
    stage_links::{StageLinks, next_frame},
    upstream::ArrivedFrame,
};
