//! Time and memory of training steps with random weights: `step [side=256] [steps=3] [batch=1] [rank=0]
//! [blocks=28] [threads=4] [precision=fp32] [caption=120] [config=FILE]`.
//!
//! `side` of the pictures in pixels; `rank` of LoRA adapters of all attention layers, 0 trains all weights; `blocks`
//! in the place of XL/2's; `caption` in tokens; `config` is a `config.json` in the place of XL/2's.

use std::error::Error;
use std::time::Instant;

use ndarray::ArrayD;
use pixart_exporter::VariantFlags;
use pixart_exporter::naming::TransformerConfig;
use pixart_runtime::engine::{EngineChoice, EngineOptions, open};
use pixart_runtime::noise::TorchGenerator;
use pixart_runtime::sampler::{NoiseSchedule, SchedulerConfig};
use pixart_runtime::tensor::Tensor;
use pixart_trainer::gradient::{Inputs, Precision, TrainedTransformer, Training, Weights};
use pixart_trainer::loss::{Diffusion, LossKind, Target};
use pixart_trainer::optimizer::{
    Accumulated, Accumulator, Algorithm, Came, Optimizer, Step, clip_factor,
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let given = |name: &str| {
        let mut pairs = arguments.iter().filter_map(|argument| argument.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let number = |name: &str, default: usize| given(name).map_or(Ok(default), str::parse);
    let (side, steps) = (number("side", 256)?, number("steps", 3)?);
    let (batch, caption) = (number("batch", 1)?, number("caption", 120)?);
    let rank = Some(number("rank", 0)?).filter(|&rank| rank > 0);
    let config = match given("config") {
        Some(file) => TransformerConfig::read_file(file.as_ref(), &VariantFlags::default())?,
        None => {
            TransformerConfig { num_layers: number("blocks", 28)?, ..TransformerConfig::xl2(32) }
        }
    };
    let threads = given("threads").map(str::parse).transpose()?;
    let engine = EngineOptions { threads, ..EngineOptions::default() };
    let engine = open(EngineChoice::Auto, &engine)?.engine;
    println!("{}", engine.describe());
    let training = match rank {
        Some(_) => Training::lora(|layer| layer.starts_with("attn")),
        None => Training::full(),
    };
    let precision = given("precision").map(str::parse::<Precision>).transpose()?;
    let training = training.in_precision(precision.unwrap_or_default());
    let mut model = TrainedTransformer::load(engine.as_ref(), &config, &training)?;
    let mut accumulator = Accumulator::new(engine.as_ref(), 1)?;
    let mut optimizer: Option<Optimizer> = None;
    let diffusion = Diffusion::new(&NoiseSchedule::new(&SchedulerConfig::default()));

    let mut generator = TorchGenerator::new(0);
    let mut random = |shape: &[usize], scale: f32| -> ArrayD<f32> {
        let numbers = generator.randn(shape.iter().product());
        let array = ArrayD::from_shape_vec(shape, numbers).expect("as many numbers");
        array * scale
    };
    let mut weights = Weights::new();
    for (name, shape) in model.weights() {
        let sizes = shape.iter().map(|dim| dim.evaluate(|_| Some(rank.unwrap_or(0) as i64)));
        let sizes = sizes.map(|size| size.map(|n| n as usize)).collect::<Option<Vec<_>>>();
        let sizes = sizes.ok_or("a weight of unknown size")?;
        weights.insert(name, engine.to_device(Tensor::F32(random(&sizes, 0.02)))?);
    }
    weights.insert("lora_scale".to_owned(), ArrayD::from_elem(vec![], 1f32).into());
    let latents = [batch, 4, side / 8, side / 8];
    let (clean, noise, times) = (random(&latents, 1.0), random(&latents, 1.0), vec![500; batch]);
    let captions = [batch, caption, config.caption_channels];
    let noisy = diffusion.add_noise(&clean, &noise, &times)?;
    let inputs = Inputs {
        hidden_states: noisy.clone().into(),
        encoder_hidden_states: random(&captions, 0.1).into(),
        encoder_attention_mask: ArrayD::from_elem(vec![batch, caption], 1i64).into(),
        timestep: ArrayD::from_elem(vec![batch], 500f32).into(),
        conditions: None,
    };
    let target = Target { clean: &clean, noise: &noise, noisy: &noisy, times: &times };
    let kind = if rank.is_some() { LossKind::NoiseError } else { LossKind::WithVariance };
    for _ in 0..steps {
        let start = Instant::now();
        let pass = model.forward(&weights, &inputs)?;
        let forward = start.elapsed().as_secs_f64();
        let loss = diffusion.loss(kind, &pass.output, &target)?;
        let mean = loss.mean();
        let gradients = model.backward(&weights, pass, loss.gradient)?;
        let backward = start.elapsed().as_secs_f64() - forward;
        let optimizer = match &mut optimizer {
            Some(optimizer) => optimizer,
            none => none.insert(Optimizer::new(
                engine.as_ref(),
                Algorithm::Came(Came::default()),
                vec![],
                &gradients,
            )?),
        };
        let Accumulated::Complete(gradients) = accumulator.add(gradients, 1.0)? else {
            return Err("a gradient is not finite".into());
        };
        let gradient_scale = gradients.scale * clip_factor(gradients.norm, 0.01);
        let change = Step { learning_rate: 2e-5, weight_decay: 0.0, gradient_scale };
        optimizer.step(&mut weights, gradients.tensors, &change)?;
        let all = start.elapsed().as_secs_f64();
        let step = all - forward - backward;
        println!(
            "loss {mean:.4}: {all:.2} s, forward {forward:.2}, backward {backward:.2}, optimizer \
             {step:.2}{}",
            peak()
        );
    }
    Ok(())
}

/// The largest memory that the process had, where the system tells.
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.map(|text| format!(", at most {}", text.trim())).unwrap_or_default()
}
