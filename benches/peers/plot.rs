//! Draws the latencies over the rate, both logarithmic: a line for the median of each system, and a thin one for p99.

use std::path::Path;

use anyhow::anyhow;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::{OURS, Report, System};

const SIZE: (u32, u32) = (820, 420);

/// Writes the SVG.
pub(crate) fn draw(path: &Path, report: &Report) -> anyhow::Result<()> {
    let systems: Vec<&System> = report.systems.iter().filter(|system| !system.latencies.is_empty()).collect();
    let all = || systems.iter().flat_map(|system| &system.latencies);
    let rates = all().map(|latency| latency.rate_events_per_s);
    let (low, high) = rates.fold((f64::INFINITY, 0.0_f64), |(low, high), rate| (low.min(rate), high.max(rate)));
    let lowest = all().map(|latency| latency.p50_ms).fold(1.0, f64::min);
    let highest = all().map(|latency| latency.p99_ms).fold(10.0, f64::max);
    let failed = |error: &dyn std::fmt::Display| anyhow!("{error}");

    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .margin_right(130)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d((low..high).log_scale(), (lowest * 0.8..highest * 1.3).log_scale())
        .map_err(|error| failed(&error))?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("events per second")
        .y_desc("ms to a consumer: p50, and p99 (thin)")
        .x_label_formatter(&|rate| format!("{rate}"))
        .y_label_formatter(&|ms| format!("{ms}"))
        .draw()
        .map_err(|error| failed(&error))?;
    for (number, system) in systems.iter().enumerate() {
        let color = if system.name == OURS { RGBColor(200, 30, 60) } else { OTHERS[number % OTHERS.len()] };
        let line = |of: fn(&crate::latency::Latency) -> f64| {
            system.latencies.iter().map(move |latency| (latency.rate_events_per_s, of(latency)))
        };
        let thin = LineSeries::new(line(|latency| latency.p99_ms), color.stroke_width(1));
        let thick = LineSeries::new(line(|latency| latency.p50_ms), color.stroke_width(3)).point_size(3);
        chart.draw_series(thin).map_err(|error| failed(&error))?;
        chart.draw_series(thick).map_err(|error| failed(&error))?;
        // The name stands at the end of the line.
        let Some(last) = system.latencies.last() else { continue };
        let style = ("sans-serif", 14).into_font().color(&color).pos(Pos::new(HPos::Left, VPos::Center));
        let (x, y) = chart.backend_coord(&(last.rate_events_per_s, last.p50_ms));
        root.draw(&Text::new(system.name.clone(), (x + 8, y), style)).map_err(|error| failed(&error))?;
    }
    root.present().map_err(|error| failed(&error))
}

const OTHERS: [RGBColor; 4] =
    [RGBColor(30, 90, 170), RGBColor(90, 90, 90), RGBColor(20, 130, 90), RGBColor(170, 110, 20)];
