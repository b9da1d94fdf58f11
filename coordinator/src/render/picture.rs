//! A pipeline as a picture: in the terminal, and as SVG.

use std::fmt::Write as _;

use qmesh_models::terminal::escaped_line;

/// One stage of the picture.
#[derive(Clone, Debug, PartialEq)]
pub struct StageBox {
    /// Its worker.
    pub worker: String,
    /// Which layers.
    pub layers: String,
    /// What a token takes there, in milliseconds, where that is known.
    pub ms: Option<f64>,
    /// What it takes of the worker's memory, between 0 and 1.
    pub memory_share: f64,
}

/// The stages one below the other, each with a bar as long as a token stays there.
pub fn text(boxes: &[StageBox]) -> String {
    let longest = boxes.iter().filter_map(|stage| stage.ms).fold(0.0, f64::max);
    let widths = [
        boxes.iter().map(|stage| escaped_line(&stage.worker).chars().count()).max().unwrap_or(0),
        boxes.iter().map(|stage| stage.layers.chars().count()).max().unwrap_or(0),
    ];
    let line = |(number, stage): (usize, &StageBox)| {
        let mark = if number == 0 { "ids →" } else { "    →" };
        let name = escaped_line(&stage.worker).to_string();
        let [wide, long] = widths;
        let time = stage.ms.map_or_else(String::new, |ms| {
            let bar = "█".repeat(((BAR as f64 * ms / longest.max(1e-9)).round() as usize).max(1));
            format!("  {ms:>8.2} ms  {bar}")
        });
        format!("{mark} {name:wide$}  layers {:long$}{time}", stage.layers)
    };
    let lines = boxes.iter().enumerate().map(line);
    lines.chain(["    → token".to_owned()]).collect::<Vec<_>>().join("\n")
}

/// The stages side by side, as wide as a token stays there, filled as far as their memory is.
pub fn svg(title: &str, boxes: &[StageBox]) -> String {
    let total: f64 = boxes.iter().map(|stage| stage.ms.unwrap_or(1.0)).sum();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<text x=\"{EDGE}\" y=\"24\" font-size=\"16\">{}</text>\n",
        escaped_xml(title)
    );
    let room = WIDTH - 2.0 * EDGE - GAP * boxes.len().saturating_sub(1) as f64;
    // So narrow a box still shows what is written in it.
    let least = (room / boxes.len().max(1) as f64).min(110.0);
    let spare = (room - least * boxes.len() as f64).max(0.0);
    let mut x = EDGE;
    for (number, stage) in boxes.iter().enumerate() {
        let wide = least + spare * stage.ms.unwrap_or(1.0) / total.max(1e-9);
        let fill = BOX * stage.memory_share.clamp(0.0, 1.0);
        let (top, middle) = (TOP + BOX - fill, x + wide / 2.0);
        // Writing to a text cannot fail.
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{TOP}\" width=\"{wide:.1}\" height=\"{BOX}\" fill=\"none\" stroke=\"#445\"/>\n\
             <rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"{wide:.1}\" height=\"{fill:.1}\" fill=\"#9bd\" opacity=\"0.5\"/>"
        );
        let time = stage.ms.map_or_else(String::new, |ms| format!("{ms:.2} ms"));
        for (row, words) in [&stage.worker, &stage.layers, &time].into_iter().enumerate() {
            let y = TOP + 30.0 + 22.0 * row as f64;
            let _ =
                writeln!(svg, "<text x=\"{middle:.1}\" y=\"{y}\" text-anchor=\"middle\">{}</text>", escaped_xml(words));
        }
        if number + 1 < boxes.len() {
            let (from, y) = (x + wide, TOP + BOX / 2.0);
            let _ = writeln!(svg, "<path d=\"M{from:.1} {y}h{GAP}m-6 -4l6 4l-6 4\" stroke=\"#445\" fill=\"none\"/>");
        }
        x += wide + GAP;
    }
    svg + "</svg>\n"
}

fn escaped_xml(text: &str) -> String {
    escaped_line(text).to_string().replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Characters of the longest bar.
const BAR: usize = 30;
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 150.0;
const EDGE: f64 = 16.0;
const GAP: f64 = 24.0;
const TOP: f64 = 44.0;
const BOX: f64 = 90.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(worker: &str, ms: Option<f64>) -> StageBox {
        StageBox { worker: worker.to_owned(), layers: "0..4 (4)".to_owned(), ms, memory_share: 0.5 }
    }

    #[test]
    fn the_slowest_stage_has_the_longest_bar() {
        let shown = text(&[stage("a", Some(10.0)), stage("attic", Some(5.0))]);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 3);
        let bar = |line: &str| line.chars().filter(|c| *c == '█').count();
        assert_eq!((bar(lines[0]), bar(lines[1])), (30, 15));
        assert!(!text(&[stage("a", None)]).contains("ms"));
    }

    #[test]
    fn names_are_no_markup() {
        let drawn = svg("a & b", &[stage("<x>", Some(1.0)), stage("y", None)]);
        assert!(drawn.contains("a &amp; b") && drawn.contains("&lt;x&gt;") && !drawn.contains("<x>"), "{drawn}");
        assert_eq!(drawn.matches("<rect").count(), 4);
        assert_eq!(drawn.matches("<path").count(), 1);
    }
}
