//! What a compiled graph depends on, as far as it can be read: the graph and its weights, the libraries, the driver
//! and the machine.
//!
//! Hashing gigabytes of weights at every start would take longer than some compilations. So of a large file, size,
//! time of change and evenly spread samples count; of what is small, everything.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use sha2::{Digest as _, Sha256};

use super::{super::library::Library, Provider, option::INDEX};
use crate::files::{hex, sha256_of};

/// Samples of a large file, and bytes of each.
const SAMPLES: u64 = 256;
const SAMPLE: usize = 4096;

/// Files that tell which driver is at work, on Linux and macOS. Those that are not there count as absent.
const SYSTEM_FILES: [&str; 6] = [
    "/proc/driver/nvidia/version",
    "/sys/module/amdgpu/version",
    "/sys/module/i915/srcversion",
    "/sys/module/intel_vpu/version",
    "/usr/local/Ascend/driver/version.info",
    "/System/Library/CoreServices/SystemVersion.plist",
];

/// Lines of text that are the same only for the same thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Identity(String);

impl Identity {
    /// A graph, its weights, and the hashes of those that replace others.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn of(
        model: &Path,
        graph: Option<&[u8]>,
        weights: &[PathBuf],
        changes: &[String],
    ) -> io::Result<Self> {
        let mut identity = Self::default();
        identity.add(
            "graph",
            match graph {
                Some(graph) => sha256(graph),
                None => sha256_of(model, &mut |_| ())?,
            },
        );
        for file in weights {
            identity.add("weights", sampled(file)?);
        }
        for change in changes {
            identity.add("changed weights", change);
        }
        Ok(identity)
    }

    /// What `library`, or a `plugin` for it, computes with on this machine. To be asked once the provider was
    /// at work, since it loads libraries of its own.
    ///
    /// # Errors
    /// When a library cannot be read.
    pub fn of_machine(
        provider: &Provider,
        library: &Library,
        plugin: Option<&Path>,
    ) -> io::Result<Self> {
        let mut identity = Self::default();
        identity.add("program", env!("CARGO_PKG_VERSION"));
        identity.add("provider", provider.name);
        identity.add("ONNX Runtime", &library.version);
        let main = [Some(library.path.as_path()), plugin];
        for path in main.into_iter().flatten() {
            identity.add("library", sha256_of(path, &mut |_| ())?);
            // Its parts lie beside it.
            let folder = path.parent().unwrap_or(Path::new("."));
            let names = provider.builds().flat_map(|build| build.libraries);
            let names: Vec<&str> = names.copied().chain(["onnxruntime"]).collect();
            for file in beginning_with(fs::read_dir(folder)?.flatten().map(|e| e.path()), &names) {
                identity.add("library", stamp(&file));
            }
        }
        let names: Vec<&str> = provider.system_libraries.iter().map(|name| stem(name)).collect();
        for file in beginning_with(loaded_libraries().into_iter(), &names) {
            identity.add("system library", format!("{} {}", file.display(), stamp(&file)));
        }
        for file in SYSTEM_FILES {
            if let Ok(text) = fs::read(file) {
                identity.add(file, sha256(&text));
            }
        }
        identity.add("system", std::env::consts::OS);
        if let Ok(release) = fs::read_to_string("/proc/sys/kernel/osrelease") {
            identity.add("kernel", release.trim());
        }
        identity.add("processor", processor());
        for card in cards() {
            identity.add("card", card);
        }
        for (name, value) in choosing(std::env::vars_os()) {
            identity.add(&name, value);
        }
        Ok(identity)
    }

    /// A provider's options, however they were written: in any order, a device by its number or as the first,
    /// files by what is in them.
    pub fn add_settings(&mut self, provider: &Provider, settings: &[(String, String)]) {
        let mut settings = settings.to_vec();
        // What is not given is the first of all devices, where these have numbers.
        let first = provider.suffix.filter(|suffix| {
            provider.options.iter().any(|option| option.name == *suffix && option.kind == INDEX)
                && settings.iter().all(|(name, _)| name != suffix)
        });
        settings.extend(first.map(|name| (name.to_owned(), "0".to_owned())));
        settings.sort();
        for (name, value) in settings {
            let file = Path::new(&value);
            if file.is_file()
                && let Ok(content) = sha256_of(file, &mut |_| ())
            {
                self.add(&name, content);
            }
            let is_device = provider.suffix == Some(name.as_str());
            self.add(&name, if is_device { value.to_ascii_uppercase() } else { value });
        }
    }

    /// Adds a line.
    pub fn add(&mut self, what: &str, value: impl AsRef<str>) {
        // A value cannot pass for a line of its own.
        let value = value.as_ref().escape_debug();
        self.0.push_str(&format!("{what}: {value}\n"));
    }

    /// Adds the lines of another.
    pub fn append(&mut self, other: &Self) {
        self.0.push_str(&other.0);
    }

    /// The lines.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name for files.
    pub fn hash(&self) -> String {
        sha256(self.0.as_bytes())[..32].to_owned()
    }
}

/// The variables that choose and order the devices that a driver shows, in order.
fn choosing(variables: impl Iterator<Item = (OsString, OsString)>) -> BTreeMap<String, String> {
    let others = ["CUDA_DEVICE_ORDER", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK"];
    let text = |text: OsString| text.to_string_lossy().into_owned();
    let variables = variables.map(|(name, value)| (text(name), text(value)));
    variables
        .filter(|(name, _)| name.ends_with("_VISIBLE_DEVICES") || others.contains(&name.as_str()))
        .collect()
}

/// SHA-256 in hexadecimal digits.
pub(in super::super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Size, time of change and samples of a file.
fn sampled(file: &Path) -> io::Result<String> {
    let mut opened = File::open(file)?;
    let size = opened.metadata()?.len();
    let mut hash = Sha256::new();
    let mut block = vec![0; SAMPLE];
    let last = size.saturating_sub(SAMPLE as u64);
    let count = SAMPLES.min(size.div_ceil(SAMPLE as u64)).max(1);
    for k in 0..count {
        // From the first byte to the last.
        opened.seek(SeekFrom::Start(last * k / (count - 1).max(1)))?;
        let read = opened.by_ref().take(SAMPLE as u64).read(&mut block)?;
        hash.update(&block[..read]);
    }
    Ok(format!("{} {}", stamp(file), hex(&hash.finalize())))
}

/// Name, size and time of change of a file.
fn stamp(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let Ok(metadata) = fs::metadata(file) else { return format!("{name} unreadable") };
    let changed = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let changed = changed.map_or(0, |changed| changed.as_nanos());
    format!("{name} {} {changed}", metadata.len())
}

/// Those whose names begin so, less a `lib` in front, in order.
fn beginning_with(files: impl Iterator<Item = PathBuf>, names: &[&str]) -> BTreeSet<PathBuf> {
    let fits = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        names.iter().any(|wanted| stem(&name).starts_with(wanted))
    };
    files.filter(fits).collect()
}

/// `cuda` of `libcuda.so.1`.
fn stem(name: &str) -> &str {
    let name = name.strip_prefix("lib").unwrap_or(name);
    name.split_once(".so").map_or(name, |(stem, _)| stem)
}

/// The libraries that this process has loaded, as far as the system tells.
fn loaded_libraries() -> BTreeSet<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let files = maps.lines().filter_map(|line| Some(&line[line.find('/')?..]));
    files.filter(|file| file.contains(".so")).map(PathBuf::from).collect()
}

/// What the processor is and can do.
fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let known = ["model name", "flags", "Features", "CPU part"];
    let mut lines: Vec<&str> = Vec::new();
    for line in text.lines().filter(|line| known.iter().any(|known| line.starts_with(known))) {
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    format!("{} {}", std::env::consts::ARCH, &sha256(lines.join("\n").as_bytes())[..16])
}

/// Which graphics cards and accelerators the system has.
fn cards() -> BTreeSet<String> {
    let classes = ["/sys/class/drm", "/sys/class/accel", "/proc/driver/nvidia/gpus"];
    let entries = classes.iter().filter_map(|class| fs::read_dir(class).ok()).flatten().flatten();
    let card = |entry: fs::DirEntry| {
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).ok();
        match (read("device/vendor"), read("device/device")) {
            (Some(vendor), Some(device)) => Some(format!("{} {}", vendor.trim(), device.trim())),
            // Its first lines name the model, the interrupt and the card's number.
            _ => read("information").map(|text| text.lines().take(3).collect()),
        }
    };
    entries.filter_map(card).collect()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Device, DeviceOptions},
        *,
    };

    #[test]
    fn another_graph_weight_or_change_is_another_identity() {
        let folder = tempfile::tempdir().expect("a folder");
        let (model, weights) = (folder.path().join("m.onnx"), folder.path().join("w"));
        fs::write(&model, "graph").expect("written");
        let mut bytes = vec![7; 3_000_000];
        fs::write(&weights, &bytes).expect("written");
        let of = |graph: Option<&[u8]>, changes: &[String]| {
            Identity::of(&model, graph, std::slice::from_ref(&weights), changes).expect("readable")
        };
        let first = of(None, &[]);
        assert_eq!(first, of(Some(b"graph"), &[]), "wherever it comes from");
        assert_ne!(first.hash(), of(Some(b"graphs"), &[]).hash());
        assert_ne!(first, of(None, &["a 1".to_owned()]));
        // The same size at another time, then the same time with another end.
        let file = File::options().write(true).open(&weights).expect("a file");
        let time = file.metadata().and_then(|m| m.modified()).expect("a time");
        file.set_modified(time + std::time::Duration::from_secs(1)).expect("set");
        assert_ne!(first, of(None, &[]));
        *bytes.last_mut().expect("some") = 8;
        fs::write(&weights, &bytes).expect("written");
        file.set_modified(time).expect("set");
        assert_ne!(first, of(None, &[]));
        bytes.pop();
        bytes.push(7);
        fs::write(&weights, &bytes).expect("written");
        file.set_modified(time).expect("set");
        assert_eq!(first, of(None, &[]));
        assert!(Identity::of(&model, None, &[folder.path().join("none")], &[]).is_err());
    }

    #[test]
    fn options_count_by_what_they_mean() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("openvino.json");
        fs::write(&file, "{}").expect("written");
        let file = file.to_str().expect("Unicode");
        let of = |device: &str, options: &[(&str, &str)]| {
            let device: Device = device.parse().expect(device);
            let provider = device.provider;
            let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            let options = options.iter().map(own).collect();
            let options = DeviceOptions { device, options, ..DeviceOptions::default() };
            let mut identity = Identity::default();
            identity.add_settings(provider, &options.settings().expect("fine"));
            identity
        };
        assert_eq!(of("tensorrt", &[]), of("tensorrt:0", &[]));
        assert_eq!(of("tensorrt:0", &[]), of("tensorrt", &[("device_id", "0")]));
        assert_ne!(of("tensorrt", &[]), of("tensorrt:1", &[]));
        assert_eq!(of("openvino:gpu", &[]), of("openvino:GPU", &[]));
        assert_ne!(of("openvino", &[]), of("openvino:GPU", &[]));
        let [a, b] = [("trt_fp16_enable", "1"), ("trt_bf16_enable", "0")];
        assert_eq!(of("tensorrt", &[a, b]), of("tensorrt", &[b, a]));
        assert_ne!(of("tensorrt", &[a]), of("tensorrt", &[]));
        let config = [("load_config", file)];
        let before = of("openvino", &config);
        assert_eq!(before, of("openvino", &config));
        fs::write(file, r#"{"GPU": {"EXECUTION_MODE_HINT": "ACCURACY"}}"#).expect("written");
        assert_ne!(before, of("openvino", &config));
    }

    #[test]
    fn variables_that_choose_devices_count() {
        let variables =
            ["PATH", "CUDA_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "ASCEND_RT_VISIBLE_DEVICES"];
        let found = choosing(variables.into_iter().map(|name| (name.into(), "1".into())));
        let found: Vec<_> = found.keys().map(String::as_str).collect();
        assert_eq!(
            found,
            ["ASCEND_RT_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"]
        );
    }

    #[test]
    fn a_value_is_no_line() {
        let (mut one, mut two) = (Identity::default(), Identity::default());
        one.add("a", "1\nb: 2");
        two.add("a", "1");
        two.add("b", "2");
        assert_ne!(one, two);
        assert_eq!(stem("libcuda.so.1"), "cuda");
        assert_eq!(stem("libnvinfer.so.10"), "nvinfer");
    }
}
