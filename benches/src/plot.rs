//! Plots as SVG files.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// Lines over one axis.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Of the file, without ending.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// The horizontal axis, units included.
    pub x: &'static str,
    /// The vertical axis, units included; from 0 on.
    pub y: &'static str,
    /// The lines.
    pub lines: Vec<PlotLine>,
}

/// One line.
#[derive(Clone, Debug)]
pub struct PlotLine {
    /// What it is of.
    pub label: String,
    /// Its points by x.
    pub points: Vec<(f64, f64)>,
}

impl Plot {
    /// Adds a point to the line of that label, which is new or known.
    pub fn push(&mut self, label: &str, x: f64, y: f64) {
        match self.lines.iter_mut().find(|line| line.label == label) {
            Some(line) => line.points.push((x, y)),
            None => self.lines.push(PlotLine { label: label.to_owned(), points: vec![(x, y)] }),
        }
    }

    /// Writes it into `folder`, which must be there; its path.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join(format!("{}.svg", self.name));
        self.draw(&path).map_err(|error| anyhow!("--plot: {}: {error}", path.display()))?;
        Ok(path)
    }

    fn draw(&self, path: &Path) -> Result<(), Box<dyn std::error::Error + '_>> {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let right = points().map(|p| p.0).fold(1.0, f64::max);
        let top = points().map(|p| p.1).fold(0.0, f64::max).max(f64::MIN_POSITIVE) * 1.1;
        let area = SVGBackend::new(path, (800, 500)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..right * LEGEND_ROOM, 0.0..top)?;
        chart.configure_mesh().x_desc(self.x).y_desc(self.y).max_light_lines(0).draw()?;
        for (number, line) in self.lines.iter().enumerate() {
            let color = Palette99::pick(number).to_rgba();
            let series = LineSeries::new(line.points.iter().copied(), color.stroke_width(2)).point_size(3);
            let entry = move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2));
            chart.draw_series(series)?.label(&line.label).legend(entry);
        }
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
        area.present()?;
        Ok(())
    }
}

/// The part beyond the last point is the legend's.
const LEGEND_ROOM: f64 = 1.35;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_their_names_are_drawn() {
        let folder = tempfile::tempdir().unwrap();
        let mut plot = Plot { name: "a".into(), title: "Rates".into(), x: "clients", y: "tok/s", lines: Vec::new() };
        for (label, x, y) in [("1 stage", 1.0, 10.0), ("2 stages", 1.0, 9.0), ("1 stage", 8.0, 20.0)] {
            plot.push(label, x, y);
        }
        let text = std::fs::read_to_string(plot.write(folder.path()).unwrap()).unwrap();
        assert!(["Rates", "clients", "tok/s", "1 stage", "2 stages"].iter().all(|word| text.contains(word)), "{text}");
        let error = plot.write(&folder.path().join("absent")).unwrap_err().to_string();
        assert!(error.contains("a.svg"), "{error}");
    }
}
