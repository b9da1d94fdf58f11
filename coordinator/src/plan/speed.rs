//! How fast a worker computes one model: the time of a step per byte of weights, by the rows of the step.
//!
//! A step of few rows takes the time of reading the weights, one of many rows that of computing with them, and what lies
//! between is measured, not modelled. Layers of one model have much the same types of tensors, so that a layer's time is
//! in proportion to its bytes.

use serde::{Deserialize, Serialize};

use super::{Capacity, curve};

/// How fast a worker computes one model.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Speed {
    /// In increasing rows; at least one.
    points: Vec<SpeedPoint>,
    /// Picoseconds for each byte of keys and values that a row of a prompt meets, where that is known.
    #[serde(default)]
    attention_ps_per_byte: Option<f64>,
    /// Picoseconds for each byte that is read from the worker's disk.
    #[serde(default = "presumed_disk")]
    pub disk_ps_per_byte: f64,
    /// How it is known.
    pub source: SpeedSource,
}

/// The time of steps of so many rows.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct SpeedPoint {
    /// Rows of the step; at least 1.
    pub rows: u32,
    /// Picoseconds for each byte of the layers' weights that a token reads.
    pub layers_ps_per_byte: f64,
    /// Picoseconds for each byte of the head, where every row passes it.
    pub head_ps_per_byte: f64,
}

/// How a speed is known.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SpeedSource {
    /// The worker has computed with tensors of the model's shapes and types.
    Measured,
    /// From a memory bandwidth that somebody stated.
    Stated,
    /// Nobody knows: it only serves to compare workers by their threads.
    Presumed,
}

impl Speed {
    /// A measured speed; `None` if the points are none that anybody can have measured.
    pub fn measured(mut points: Vec<SpeedPoint>) -> Option<Self> {
        let sound = |ps: f64| ps.is_finite() && (0.0..=PS_PER_BYTE_MOST).contains(&ps);
        let all = points.iter().all(|p| p.rows > 0 && sound(p.layers_ps_per_byte) && sound(p.head_ps_per_byte));
        points.sort_by_key(|point| point.rows);
        points.dedup_by_key(|point| point.rows);
        let disk_ps_per_byte = presumed_disk();
        (all && !points.is_empty()).then_some(Self {
            points,
            attention_ps_per_byte: None,
            disk_ps_per_byte,
            source: SpeedSource::Measured,
        })
    }

    /// What is to be expected of memory that gives so many bytes a second, which must be positive.
    pub fn of_bandwidth(bytes_per_s: f64) -> Self {
        let points = points(PS_PER_S / bytes_per_s).to_vec();
        let disk_ps_per_byte = presumed_disk();
        Self { points, attention_ps_per_byte: None, disk_ps_per_byte, source: SpeedSource::Stated }
    }

    /// For a worker of which only the threads are known.
    pub fn presumed(threads: u32) -> Self {
        let bytes_per_s = PRESUMED_BYTES_PER_S * f64::from(threads.max(1));
        Self { source: SpeedSource::Presumed, ..Self::of_bandwidth(bytes_per_s) }
    }

    /// The same computer with a disk that gives so many bytes a second, where that is known.
    pub fn with_disk(self, bytes_per_s: Option<f64>) -> Self {
        let disk_ps_per_byte = bytes_per_s.map_or(self.disk_ps_per_byte, |rate| PS_PER_S / rate.max(1.0));
        Self { disk_ps_per_byte, ..self }
    }

    /// The same computer with such a time for each byte of keys and values, where it is known and can be one.
    pub fn with_attention(self, ps_per_byte: Option<f64>) -> Self {
        let sound = |ps: &f64| ps.is_finite() && (0.0..=PS_PER_BYTE_MOST).contains(ps);
        Self { attention_ps_per_byte: ps_per_byte.filter(sound).or(self.attention_ps_per_byte), ..self }
    }

    /// Picoseconds for each byte of keys and values that a row of a prompt meets. Where it is not known, that of a byte of
    /// weights among many rows.
    pub fn attention(&self) -> f64 {
        self.attention_ps_per_byte.unwrap_or_else(|| self.layers(LARGE_STEP) / LARGE_STEP)
    }

    /// Picoseconds of a step of `rows` rows for each byte of layers.
    pub fn layers(&self, rows: f64) -> f64 {
        self.at(rows, |point| point.layers_ps_per_byte)
    }

    /// Picoseconds of a step of `rows` rows for each byte of the head.
    pub fn head(&self, rows: f64) -> f64 {
        self.at(rows, |point| point.head_ps_per_byte)
    }

    /// Whether two speeds are known in the same way, and differ by no more than this part of the faster one's times.
    pub(crate) fn is_within(&self, other: &Self, part: f64) -> bool {
        let near = |a: f64, b: f64| (a - b).abs() <= part * a.min(b);
        let rows = |speed: &Self| speed.points.iter().map(|point| point.rows).collect::<Vec<_>>();
        let same = self.source == other.source && rows(self) == rows(other);
        same && [1.0, LARGE_STEP].into_iter().all(|rows| near(self.layers(rows), other.layers(rows)))
    }

    /// The mean of `speeds`, which are near to this one.
    pub(crate) fn mean(&self, speeds: &[Self]) -> Self {
        let count = speeds.len().max(1) as f64;
        let points = self.points.iter().enumerate().map(|(index, point)| {
            let mean = |of: fn(&SpeedPoint) -> f64| {
                speeds.iter().filter_map(|speed| speed.points.get(index)).map(of).sum::<f64>() / count
            };
            SpeedPoint {
                rows: point.rows,
                layers_ps_per_byte: mean(|point| point.layers_ps_per_byte),
                head_ps_per_byte: mean(|point| point.head_ps_per_byte),
            }
        });
        let attention = speeds.iter().map(Self::attention).sum::<f64>() / count;
        Self { points: points.collect(), attention_ps_per_byte: Some(attention), ..self.clone() }
    }

    /// The points.
    pub fn points(&self) -> &[SpeedPoint] {
        &self.points
    }

    /// As measured, between its neighbours, or in proportion beyond the last.
    fn at(&self, rows: f64, of: impl Fn(&SpeedPoint) -> f64) -> f64 {
        let points = self.points.iter().map(|point| (f64::from(point.rows), of(point)));
        curve::at(points, rows).unwrap_or(0.0)
    }
}

/// Gives workers whose measured speeds differ by no more than two measurements of one machine do the mean of them: equal
/// machines then get equal shares.
pub fn even_out(workers: &mut [Capacity]) {
    let mut seen = vec![false; workers.len()];
    for first in 0..workers.len() {
        let Some(speed) = workers[first].speed.clone().filter(|speed| speed.source == SpeedSource::Measured) else {
            continue;
        };
        let near = |other: &Capacity| other.speed.as_ref().is_some_and(|other| speed.is_within(other, NEAR));
        let group: Vec<usize> = (first..workers.len()).filter(|&i| !seen[i] && near(&workers[i])).collect();
        let members: Vec<Speed> = group.iter().filter_map(|&i| workers[i].speed.clone()).collect();
        for index in group {
            seen[index] = true;
            workers[index].speed = Some(speed.mean(&members));
        }
    }
}

/// Of a disk of which nothing is known.
fn presumed_disk() -> f64 {
    PS_PER_S / PRESUMED_DISK_BYTES_PER_S
}

/// What a CPU with our kernels makes of its memory's speed: few rows are read at that speed, and each of many takes a fifth
/// of the time that reading the weights takes.
fn points(ps_per_byte: f64) -> [SpeedPoint; 4] {
    [(1, 1.0), (8, 2.2), (64, 64.0 / ROWS_PER_READ), (256, 256.0 / ROWS_PER_READ)].map(|(rows, times)| SpeedPoint {
        rows,
        layers_ps_per_byte: ps_per_byte * times,
        head_ps_per_byte: ps_per_byte * times,
    })
}

/// Rows of a long prompt that are computed in the time that it takes to read the weights once.
pub(super) const ROWS_PER_READ: f64 = 5.0;
/// Two measurements of one machine differ by so much.
const NEAR: f64 = 0.2;
/// Rows of a step that computes more than it reads.
const LARGE_STEP: f64 = 256.0;
/// Picoseconds of a second.
pub(super) const PS_PER_S: f64 = 1e12;
/// A kilobyte a second: nobody would wait for that.
const PS_PER_BYTE_MOST: f64 = 1e9;
/// Of a plain solid-state disk.
const PRESUMED_DISK_BYTES_PER_S: f64 = 1e9;
/// Of a thread of a worker that says nothing about its speed.
const PRESUMED_BYTES_PER_S: f64 = 5e9;

#[cfg(test)]
mod tests {
    use super::*;

    fn point(rows: u32, ps: f64) -> SpeedPoint {
        SpeedPoint { rows, layers_ps_per_byte: ps, head_ps_per_byte: 2.0 * ps }
    }

    #[test]
    fn between_points_it_is_a_line_and_beyond_them_in_proportion() {
        let speed = Speed::measured(vec![point(8, 30.0), point(1, 10.0)]).unwrap();
        let found = [0.5, 1.0, 4.5, 8.0, 16.0].map(|rows| speed.layers(rows));
        assert_eq!(found, [10.0, 10.0, 20.0, 30.0, 60.0]);
        assert_eq!(speed.head(16.0), 120.0);
    }

    #[test]
    fn equal_machines_count_as_equal_and_others_do_not() {
        let worker = |ps| Capacity {
            name: String::new(),
            memory_bytes: 1,
            threads: 1,
            speed: Speed::measured(vec![point(1, ps), point(256, 50.0 * ps)]),
        };
        let mut workers = [worker(10.0), worker(30.0), worker(11.0), Capacity { speed: None, ..worker(1.0) }];
        even_out(&mut workers);
        let speeds: Vec<_> = workers.iter().map(|w| w.speed.as_ref().map(|speed| speed.layers(1.0))).collect();
        assert_eq!(speeds, [Some(10.5), Some(30.0), Some(10.5), None]);
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        assert_eq!(Speed::measured(Vec::new()), None);
        for bad in [point(0, 1.0), point(1, f64::NAN), point(1, -1.0), point(1, 1e12)] {
            assert_eq!(Speed::measured(vec![bad]), None, "{bad:?}");
        }
    }

    #[test]
    fn bandwidth_is_what_one_row_reads() {
        let speed = Speed::of_bandwidth(200e9);
        assert_eq!(speed.layers(1.0), 5.0);
        assert_eq!(speed.layers(256.0), 256.0);
        assert!(Speed::presumed(4).layers(1.0) < Speed::presumed(2).layers(1.0));
    }
}
