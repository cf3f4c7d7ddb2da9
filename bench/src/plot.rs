//! A comparison as a picture: operations per second over callers, one line a side, both axes logarithmic.

use crate::report::Figures;
use anyhow::{Result, anyhow};
use plotters::prelude::*;
use std::path::Path;

const COLORS: [RGBColor; 4] =
    [RGBColor(31, 119, 180), RGBColor(214, 92, 39), RGBColor(44, 140, 60), RGBColor(120, 80, 160)];

/// Draws one line for each side.
pub(crate) fn draw(file: &Path, title: &str, sides: &[(String, Vec<Figures>)]) -> Result<()> {
    let problem = |error: &dyn std::fmt::Display| anyhow!("drawing {}: {error}", file.display());
    let points = || sides.iter().flat_map(|(_, figures)| figures);
    let callers_max = points().map(|f| f64::from(f.callers)).fold(2.0, f64::max);
    let rate_min = points().map(|f| f.per_second).fold(f64::MAX, f64::min).max(1.0);
    let rate_max = points().map(|f| f.per_second).fold(10.0, f64::max);
    let area = SVGBackend::new(file, (720, 440)).into_drawing_area();
    area.fill(&WHITE).map_err(|error| problem(&error))?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(72)
        .build_cartesian_2d((1.0..callers_max * 1.2).log_scale(), (rate_min / 1.5..rate_max * 1.5).log_scale())
        .map_err(|error| problem(&error))?;
    chart
        .configure_mesh()
        .x_desc("callers")
        .y_desc("operations per second")
        .x_label_formatter(&|callers| format!("{callers:.0}"))
        .y_label_formatter(&|rate| format!("{rate:.0}"))
        .draw()
        .map_err(|error| problem(&error))?;
    for ((name, figures), color) in sides.iter().zip(COLORS.iter().cycle()) {
        let line = || figures.iter().map(|f| (f64::from(f.callers), f.per_second.max(1.0)));
        chart
            .draw_series(LineSeries::new(line(), color.stroke_width(2)))
            .map_err(|error| problem(&error))?
            .label(name)
            .legend(|(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], color.stroke_width(2)));
        chart
            .draw_series(line().map(|point| Circle::new(point, 4, color.filled())))
            .map_err(|error| problem(&error))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK.mix(0.3))
        .background_style(WHITE.mix(0.8))
        .draw()
        .map_err(|error| problem(&error))?;
    area.present().map_err(|error| problem(&error))
}
