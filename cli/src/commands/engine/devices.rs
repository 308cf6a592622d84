//! The device that a command is about.

use crate::exit::Failure;
use clap::Args;
use pixart_runtime::engine::provider::{Device, DeviceOptions};
use pixart_runtime::engine::{self, EngineChoice, EngineOptions, Opened};
use std::path::{Path, PathBuf};

/// How a device is used.
#[derive(Args)]
pub struct DeviceArgs {
    /// An option of the device's provider, as NAME=VALUE; `pixart engine list NAME` shows them
    #[arg(long = "device_option", value_name = "NAME=VALUE")]
    device_option: Vec<String>,
    /// Plugin library for ONNX Runtime that brings the device [default: the one installed]
    #[arg(long = "device_plugin", value_name = "FILE")]
    device_plugin: Option<PathBuf>,
    /// Threads to compute with [default: all cores]
    #[arg(short, long, value_name = "N")]
    threads: Option<usize>,
}

impl DeviceArgs {
    /// Whether anything is asked for.
    pub fn any(&self) -> bool {
        !self.device_option.is_empty() || self.device_plugin.is_some() || self.threads.is_some()
    }

    /// Opens the device, or nothing.
    pub fn open(&self, device: Device) -> Result<Opened, Failure> {
        let device = device_options(device, &self.device_option, self.device_plugin.as_deref())?;
        let options = EngineOptions { threads: self.threads, device, ..EngineOptions::default() };
        Ok(engine::open(EngineChoice::Auto, &options)?)
    }
}

/// A device with `--device_option` and `--device_plugin`.
pub fn device_options(
    device: Device,
    options: &[String],
    plugin: Option<&Path>,
) -> Result<DeviceOptions, Failure> {
    if let Some(plugin) = plugin
        && device.provider.is_processor()
    {
        return Err(idle_plugin(plugin));
    }
    let (options, plugin) = (split_options(options)?, plugin.map(Path::to_owned));
    Ok(DeviceOptions { device, options, plugin, ..DeviceOptions::default() })
}

/// A plugin where no device could come from it.
pub fn idle_plugin(plugin: &Path) -> Failure {
    Failure::request(format!(
        "device_plugin: found {} without a device that it could bring; name it, as in --device webgpu",
        plugin.display()
    ))
}

/// The names and values of `--device_option`.
pub fn split_options(typed: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let split = |typed: &String| match typed.split_once('=') {
        Some((name, value)) => Ok((name.trim().to_owned(), value.trim().to_owned())),
        None => {
            Err(Failure::request(format!("device_option: found `{typed}`, expected NAME=VALUE")))
        }
    };
    typed.iter().map(split).collect()
}
