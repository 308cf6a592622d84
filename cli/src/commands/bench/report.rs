//! What was measured: as tables, as JSON.

use super::parts::Parts;
use super::{BenchArgs, StageName};
use pixart_runtime::measure::Peak;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;

/// One stage at one size.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub stage: StageName,
    /// Side of the picture; text has none.
    pub pixels: Option<u32>,
    /// Median of the runs that count: of one prompt, one step of the whole batch, one picture.
    pub seconds: Option<f64>,
    pub runs: Vec<f64>,
    /// How much longer the first run took, which loads.
    pub load_seconds: Option<f64>,
    /// The most that was resident, mapped files included; `null` where the system does not tell.
    pub peak_memory_bytes: Option<u64>,
    /// Billions of floating-point operations of a run.
    pub gflop: Option<f64>,
    /// The same a second.
    pub gflops: Option<f64>,
    /// Against the machine's matrix products.
    pub share_of_peak: Option<f64>,
    /// Whether the picture was decoded in tiles.
    pub tiled: bool,
    /// Seconds of the graph's operators, the longest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operators: Option<Vec<(String, f64)>>,
    /// Why it was not measured.
    pub skipped: Option<String>,
}

impl Row {
    /// One that was not measured.
    pub fn skipped(stage: StageName, pixels: Option<u32>, reason: String) -> Self {
        Self {
            stage,
            pixels,
            seconds: None,
            runs: Vec::new(),
            load_seconds: None,
            peak_memory_bytes: None,
            gflop: None,
            gflops: None,
            share_of_peak: None,
            tiled: false,
            operators: None,
            skipped: Some(reason),
        }
    }

    /// What it is, for people.
    pub fn name(&self) -> String {
        let stage = match self.stage {
            StageName::Text => "text",
            StageName::Denoise => "step",
            StageName::Decode => "decode",
        };
        match self.pixels {
            Some(pixels) => format!("{pixels} px {stage}"),
            None => stage.to_owned(),
        }
    }
}

/// What matrix products compute with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Products {
    Fp32,
    Fp16,
}

impl Products {
    /// Those that a part of this precision is held against. On a processor all is computed in 32 bits; bf16 has
    /// none on an accelerator, where it is faster than fp32 and not measured.
    fn of(precision: &str, on_processor: bool) -> Option<Self> {
        match precision {
            "fp16" if !on_processor => Some(Self::Fp16),
            "bf16" if !on_processor => None,
            _ => Some(Self::Fp32),
        }
    }
}

impl fmt::Display for Products {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
        })
    }
}

/// The machine's fastest matrix product.
#[derive(Clone, Debug, Serialize)]
struct MatmulPeak {
    gflops: f64,
    /// Side of the square matrices.
    side: usize,
    precision: Products,
}

/// A whole picture, put together from what was measured.
#[derive(Clone, Debug, Serialize)]
struct Whole {
    pixels: u32,
    seconds_per_step: f64,
    steps_per_second: f64,
    /// All steps: the median times their number.
    steps_seconds: f64,
    /// With text, decoding and loading, a picture; absent where one of the stages was not measured.
    picture_seconds: Option<f64>,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    version: &'static str,
    model: String,
    /// By stage.
    precision: BTreeMap<StageName, String>,
    engine: String,
    threads: usize,
    keep_resident: bool,
    low_memory: bool,
    batch_size: usize,
    guidance_scale: f32,
    tokens: usize,
    steps: usize,
    warmup: usize,
    repeats: usize,
    /// Those that rows are held against; none after an interruption.
    matmul_peaks: Vec<MatmulPeak>,
    pub rows: Vec<Row>,
}

impl Report {
    pub fn new(args: &BenchArgs, parts: &Parts, engine: &str, threads: usize) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            model: parts.describe(),
            precision: BTreeMap::new(),
            engine: engine.to_owned(),
            threads,
            keep_resident: args.keep_resident,
            low_memory: args.low_memory,
            batch_size: args.batch_size,
            guidance_scale: args.guidance_scale,
            tokens: args.tokens,
            steps: args.steps,
            warmup: args.warmup,
            repeats: args.repeats,
            matmul_peaks: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// The precision of a stage's part.
    pub fn note_precision(&mut self, stage: StageName, precision: &str) {
        self.precision.insert(stage, precision.to_owned());
    }

    /// Whether there is anything to tell.
    pub fn is_measured(&self) -> bool {
        self.rows.iter().any(|row| row.skipped.is_none())
    }

    /// The matrix products that the rows which were measured are held against.
    pub fn products(&self, on_processor: bool) -> Vec<Products> {
        let measured = self.rows.iter().filter(|row| row.skipped.is_none());
        let mut all: Vec<Products> =
            measured.filter_map(|row| self.products_of(row.stage, on_processor)).collect();
        all.sort();
        all.dedup();
        all
    }

    fn products_of(&self, stage: StageName, on_processor: bool) -> Option<Products> {
        Products::of(self.precision.get(&stage)?, on_processor)
    }

    /// The machine's matrix products, and the rows held against them that compute like this.
    pub fn note_peak(&mut self, peak: Peak, precision: Products, on_processor: bool) {
        let Peak { gflops, side } = peak;
        self.matmul_peaks.push(MatmulPeak { gflops, side, precision });
        for k in 0..self.rows.len() {
            if self.products_of(self.rows[k].stage, on_processor) == Some(precision) {
                self.rows[k].share_of_peak = self.rows[k].gflops.map(|row| row / gflops);
            }
        }
    }

    /// Seconds of a row that was measured, and those of its loading.
    fn of(&self, stage: StageName, pixels: Option<u32>) -> Option<(f64, f64)> {
        let row = self.rows.iter().find(|row| row.stage == stage && row.pixels == pixels)?;
        Some((row.seconds?, row.load_seconds?))
    }

    /// The seed's table.
    fn wholes(&self) -> Vec<Whole> {
        let steps = self.rows.iter().filter(|row| row.stage == StageName::Denoise);
        let measured = steps.filter_map(|row| Some((row.pixels?, row.seconds?, row.load_seconds?)));
        let whole = |(pixels, seconds, load): (u32, f64, f64)| {
            let steps_seconds = seconds * self.steps as f64;
            let text = self.of(StageName::Text, None);
            let decode = self.of(StageName::Decode, Some(pixels));
            let pictures = self.batch_size as f64;
            let picture_seconds = text.zip(decode).map(|(text, decode)| {
                let loads = load + text.1 + decode.1;
                text.0 + decode.0 + (steps_seconds + loads) / pictures
            });
            let steps_per_second = 1.0 / seconds;
            Whole {
                pixels,
                seconds_per_step: seconds,
                steps_per_second,
                steps_seconds,
                picture_seconds,
            }
        };
        measured.map(whole).collect()
    }

    /// As Markdown.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mut line = |line: String| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{line}");
        };
        let mut precisions: Vec<&str> = self.precision.values().map(String::as_str).collect();
        precisions.dedup();
        let guided = if self.guidance_scale == 1.0 { "no guidance" } else { "guided" };
        let memory = match (self.keep_resident, self.low_memory) {
            (true, _) => ", --keep_resident",
            (_, true) => ", --low_memory",
            _ => "",
        };
        line(format!(
            "{}, {}, {}, {} threads, batch of {}, {guided}, prompt of {} tokens{memory}",
            self.model,
            precisions.join(" / "),
            self.engine,
            self.threads,
            self.batch_size,
            self.tokens
        ));
        for MatmulPeak { gflops, side, precision } in &self.matmul_peaks {
            line(format!(
                "matrix products: at best {gflops:.0} GFLOP/s ({side} × {side}, {precision})"
            ));
        }
        line(String::new());
        line(
            "| stage | seconds | loading | peak memory | GFLOP | GFLOP/s | of the best |"
                .to_owned(),
        );
        line("|---|---|---|---|---|---|---|".to_owned());
        for row in &self.rows {
            let name = row.name();
            if let Some(reason) = &row.skipped {
                line(format!("| {name} | not measured: {reason} | | | | | |"));
                continue;
            }
            let memory = row
                .peak_memory_bytes
                .map_or("?".to_owned(), |bytes| format!("{} GB", digits(bytes as f64 / 1e9)));
            let number = |value: Option<f64>| value.map_or(String::new(), digits);
            let share = row.share_of_peak.map_or(String::new(), |s| format!("{:.0} %", 100.0 * s));
            let tiles = if row.tiled { ", in tiles" } else { "" };
            line(format!(
                "| {name}{tiles} | {} | {} | {memory} | {} | {} | {share} |",
                number(row.seconds),
                number(row.load_seconds),
                number(row.gflop),
                number(row.gflops)
            ));
        }
        let wholes = self.wholes();
        if !wholes.is_empty() {
            let steps = self.steps;
            line(format!(
                "\n| DPM-Solver++ | steps a second | seconds a step | {steps} steps | picture, with loading |"
            ));
            line("|---|---|---|---|---|".to_owned());
            for whole in wholes {
                let picture = whole.picture_seconds.map_or("–".to_owned(), |s| digits(s) + " s");
                line(format!(
                    "| {0} × {0} | {1} | {2} | {3} s | {picture} |",
                    whole.pixels,
                    digits(whole.steps_per_second),
                    digits(whole.seconds_per_step),
                    digits(whole.steps_seconds)
                ));
            }
            line(format!(
                "\n{steps} steps and pictures are extrapolated: the median of {} measured steps, after {} that \
                 did not count.",
                self.repeats, self.warmup
            ));
        }
        for row in &self.rows {
            let Some(operators) = &row.operators else { continue };
            let all: f64 = operators.iter().map(|(_, seconds)| seconds).sum();
            line(format!("\n| {} | seconds | of all |", row.name()));
            line("|---|---|---|".to_owned());
            for (operator, seconds) in operators {
                let share = 100.0 * seconds / all;
                line(format!("| {operator} | {} | {share:.1} % |", digits(*seconds)));
            }
        }
        text
    }

    /// As JSON, with the pictures that were put together.
    pub fn json(&self) -> String {
        #[derive(Serialize)]
        struct All<'a> {
            #[serde(flatten)]
            report: &'a Report,
            /// Nothing of it was measured as a whole.
            extrapolated: Vec<Whole>,
        }
        let all = All { report: self, extrapolated: self.wholes() };
        // Numbers, texts and lists always have a form.
        serde_json::to_string_pretty(&all).unwrap_or_default()
    }
}

/// Three digits that count.
pub fn digits(value: f64) -> String {
    let whole = value.abs().max(1e-9).log10().floor() as i32 + 1;
    let places = (3 - whole).clamp(0, 6) as usize;
    format!("{value:.places$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_held_against_products_like_its_own() {
        let row = |stage| Row {
            gflops: Some(50.0),
            skipped: None,
            ..Row::skipped(stage, None, String::new())
        };
        let stages = [StageName::Text, StageName::Denoise, StageName::Decode];
        let shares = |precisions: [&str; 3], on_processor: bool| {
            let mut report = Report {
                version: "",
                model: String::new(),
                precision: stages.into_iter().zip(precisions.map(str::to_owned)).collect(),
                engine: String::new(),
                threads: 1,
                keep_resident: false,
                low_memory: false,
                batch_size: 1,
                guidance_scale: 1.0,
                tokens: 1,
                steps: 1,
                warmup: 1,
                repeats: 1,
                matmul_peaks: Vec::new(),
                rows: stages.map(row).into(),
            };
            for products in report.products(on_processor) {
                let gflops = if products == Products::Fp16 { 400.0 } else { 100.0 };
                report.note_peak(Peak { gflops, side: 512 }, products, on_processor);
            }
            let shares: Vec<_> = report.rows.iter().map(|row| row.share_of_peak).collect();
            (shares, report.matmul_peaks.len())
        };
        let (half, whole) = (Some(0.125), Some(0.5));
        assert_eq!(shares(["int8", "fp16", "fp32"], false), (vec![whole, half, whole], 2));
        assert_eq!(shares(["fp16", "fp16", "fp16"], false), (vec![half, half, half], 1));
        assert_eq!(shares(["fp16", "bf16", "fp32"], true), (vec![whole, whole, whole], 1));
        assert_eq!(shares(["bf16", "bf16", "bf16"], false), (vec![None, None, None], 0));
    }

    #[test]
    fn three_digits_count() {
        for (value, expected) in [
            (0.012_34, "0.0123"),
            (1.0, "1.00"),
            (12.345, "12.3"),
            (123.45, "123"),
            (12_345.6, "12346"),
            (0.0, "0.000000"),
        ] {
            assert_eq!(digits(value), expected);
        }
    }
}
