//! Plots for the README: bars for what is compared, lines for what grows. fdpool in one colour, the rest muted. Knows
//! nothing of what is plotted.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const OURS: RGBColor = RGBColor(0xd9, 0x48, 0x01);
const THEIRS: [RGBColor; 5] = [
    RGBColor(0x5b, 0x6b, 0x7a),
    RGBColor(0x8f, 0xa3, 0xb5),
    RGBColor(0x7f, 0x8f, 0x6a),
    RGBColor(0xa0, 0x8a, 0x9e),
    RGBColor(0xb8, 0xae, 0x8d),
];
const INK: RGBColor = RGBColor(0x22, 0x26, 0x2b);
const FAINT: RGBColor = RGBColor(0xe3, 0xe6, 0xe9);
const FONT: &str = "Helvetica, Arial, sans-serif";
const WIDTH: u32 = 860;
const MARGIN: i32 = 24;
const TITLE: i32 = 24;
const LINE: i32 = 28;

pub enum Plot {
    /// Groups of horizontal bars, each group on a scale of its own.
    Bars {
        title: String,
        groups: Vec<Group>,
    },
    Lines {
        title: String,
        x: Axis,
        y: Axis,
        lines: Vec<Line>,
    },
}

pub struct Group {
    pub title: String,
    /// Name, value, the value in words.
    pub bars: Vec<(String, f64, String)>,
}

pub struct Axis {
    pub title: String,
    pub logarithmic: bool,
    pub ticks: Vec<f64>,
}

impl Axis {
    /// Ticks from nothing to what holds `most`, not too many.
    pub fn up_to(most: f64) -> Vec<f64> {
        let magnitude = 10_f64.powf(most.log10().floor());
        let step = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0].map(|step| step * magnitude);
        let step = step.into_iter().find(|step| most / step <= 6.0).unwrap_or(magnitude);
        (0..=(most / step).ceil() as usize).map(|n| (n as f64 * step * 1e6).round() / 1e6).collect()
    }
}

pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

impl Plot {
    pub fn draw(&self, path: &Path) -> Drawn {
        match self {
            Plot::Bars { title, groups } => draw_bars(path, title, groups),
            Plot::Lines { title, x, y, lines } => draw_lines(path, title, x, y, lines),
        }
    }
}

/// fdpool's are the ones whose names begin so.
fn is_ours(name: &str) -> bool {
    name.starts_with("fdpool")
}

fn text(size: i32, color: RGBColor, horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    let color = color.to_backend_color();
    TextStyle { font: (FONT, size).into_font(), color, pos: Pos::new(horizontal, vertical) }
}

fn canvas<'a>(path: &'a Path, height: i32, title: &str) -> Result<Area<'a>, Box<dyn Error>> {
    let area = SVGBackend::new(path, (WIDTH, height as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    area.draw_text(title, &text(19, INK, HPos::Left, VPos::Top), (MARGIN, MARGIN - 4))?;
    Ok(area)
}

fn draw_bars(path: &Path, title: &str, groups: &[Group]) -> Drawn {
    let rows: usize = groups.iter().map(|group| group.bars.len()).sum();
    let height = 2 * MARGIN + TITLE + groups.len() as i32 * (LINE + 14) + rows as i32 * LINE;
    let area = canvas(path, height, title)?;
    let (names, values) = (310, 170);
    let longest = WIDTH as i32 - names - values - MARGIN;
    let mut y = MARGIN + TITLE;
    for group in groups {
        y += 14;
        area.draw_text(&group.title, &text(14, INK, HPos::Left, VPos::Center), (MARGIN, y + LINE / 2))?;
        y += LINE;
        let most = scale(group);
        for (name, value, words) in &group.bars {
            let middle = y + LINE / 2;
            let color = if is_ours(name) { OURS } else { THEIRS[1] };
            let end = names + ((value.min(most) / most * f64::from(longest)) as i32).max(2);
            area.draw_text(name, &text(14, INK, HPos::Right, VPos::Center), (names - 10, middle))?;
            area.draw(&Rectangle::new([(names, y + 5), (end, y + LINE - 5)], color.filled()))?;
            if *value > most {
                // Longer than there is room for: broken.
                let gap = [
                    (end - 26, y + LINE - 4),
                    (end - 20, y + 4),
                    (end - 14, y + 4),
                    (end - 20, y + LINE - 4),
                ];
                area.draw(&Polygon::new(gap, WHITE.filled()))?;
            }
            area.draw_text(words, &text(14, INK, HPos::Left, VPos::Center), (end + 8, middle))?;
            y += LINE;
        }
    }
    area.present()?;
    Ok(())
}

/// What the longest bar stands for: the greatest value, unless it makes the others vanish.
fn scale(group: &Group) -> f64 {
    let mut values: Vec<f64> = group.bars.iter().map(|(_, value, _)| *value).collect();
    values.sort_by(f64::total_cmp);
    let (middle, most) = (values[values.len() / 2], values[values.len() - 1]);
    most.min(4.0 * middle)
}

/// Where a value is along an axis, from 0 to 1.
fn place(axis: &Axis, value: f64) -> f64 {
    let (first, last) = (axis.ticks[0], axis.ticks[axis.ticks.len() - 1]);
    if axis.logarithmic {
        (value / first).ln() / (last / first).ln()
    } else {
        (value - first) / (last - first)
    }
}

fn draw_lines(path: &Path, title: &str, x: &Axis, y: &Axis, lines: &[Line]) -> Drawn {
    let height = 440;
    let area = canvas(path, height, title)?;
    // On the right there is room for the lines' names.
    let (left, right) = (MARGIN + 64, WIDTH as i32 - 290);
    let (top, bottom) = (MARGIN + TITLE + 34, height - MARGIN - 48);
    let across = |value| left + (place(x, value) * f64::from(right - left)).round() as i32;
    let up = |value| bottom - (place(y, value) * f64::from(bottom - top)).round() as i32;
    area.draw_text(&y.title, &text(13, INK, HPos::Left, VPos::Bottom), (MARGIN, top - 14))?;
    for &tick in &y.ticks {
        area.draw(&PathElement::new([(left, up(tick)), (right, up(tick))], FAINT))?;
        let label = crate::report::tick(tick);
        area.draw_text(&label, &text(13, INK, HPos::Right, VPos::Center), (left - 10, up(tick)))?;
    }
    for &tick in &x.ticks {
        area.draw(&PathElement::new([(across(tick), bottom), (across(tick), bottom + 5)], INK))?;
        let label = crate::report::tick(tick);
        area.draw_text(&label, &text(13, INK, HPos::Center, VPos::Top), (across(tick), bottom + 10))?;
    }
    area.draw(&PathElement::new([(left, bottom), (right, bottom)], INK))?;
    let middle = ((left + right) / 2, bottom + 34);
    area.draw_text(&x.title, &text(13, INK, HPos::Center, VPos::Top), middle)?;

    let mut muted = THEIRS.iter().cycle();
    let mut named = Vec::new();
    for line in lines {
        let color = if is_ours(&line.name) { OURS } else { *muted.next().expect("a cycle") };
        let points: Vec<_> = line.points.iter().map(|&(at, value)| (across(at), up(value))).collect();
        let last = points[points.len() - 1];
        area.draw(&PathElement::new(
            points.clone(),
            color.stroke_width(if is_ours(&line.name) { 3 } else { 2 }),
        ))?;
        for point in points {
            area.draw(&Circle::new(point, 4, color.filled()))?;
        }
        named.push((last.1, &line.name, color));
    }
    // Names stand beside the ends of their lines, and make way for each other.
    named.sort_by_key(|(height, ..)| *height);
    let mut free = top - LINE;
    for (height, name, color) in named {
        let at = height.max(free);
        free = at + 20;
        area.draw_text(name, &text(14, color, HPos::Left, VPos::Center), (right + 16, at))?;
    }
    area.present()?;
    Ok(())
}
