//! The wheels that bring ONNX Runtime, or a provider for it.

use super::super::{install::InstallError, library::parse_version};

/// One build of ONNX Runtime, or one plugin for it, published as a Python wheel.
#[derive(Debug, PartialEq, Eq)]
pub struct Build {
    /// The name to type: `cpu`.
    pub name: &'static str,
    /// What it is, for people.
    pub summary: &'static str,
    /// The wheel's package name.
    pub package: &'static str,
    /// The oldest version of the wheel that serves.
    pub oldest: &'static str,
    /// The folder inside the wheel that holds the shared libraries.
    pub library_folder: &'static str,
    /// What its shared libraries begin with, less a `lib` in front.
    pub libraries: &'static [&'static str],
    /// The plugin to register, as its file name begins, less a `lib` in front. A build of ONNX Runtime has
    /// none: there, the runtime itself is what is loaded.
    pub plugin: Option<&'static str>,
}

/// Every build that can be installed. Where several serve, the first is taken.
pub const BUILDS: &[Build] = &[
    Build {
        name: "cpu",
        summary: "the processor, on every platform; on macOS also CoreML",
        package: "onnxruntime",
        oldest: "1.24",
        library_folder: "onnxruntime/capi",
        libraries: &["onnxruntime"],
        plugin: None,
    },
    Build {
        name: "cuda",
        summary: "NVIDIA GPUs, through CUDA or TensorRT",
        package: "onnxruntime-gpu",
        oldest: "1.24",
        library_folder: "onnxruntime/capi",
        libraries: &["onnxruntime"],
        plugin: None,
    },
    Build {
        name: "openvino",
        summary: "Intel processors, GPUs and NPUs; its processor part runs on AMD's too",
        package: "onnxruntime-openvino",
        oldest: "1.24",
        library_folder: "onnxruntime/capi",
        libraries: &["onnxruntime", "openvino", "tbb", "hwloc"],
        plugin: None,
    },
    Build {
        name: "openvino-plugin",
        summary: "the same as a plugin for the cpu build; Intel hardware only",
        package: "onnxruntime-ep-openvino",
        oldest: "1.8",
        library_folder: "onnxruntime_ep_openvino",
        libraries: &["onnxruntime", "openvino", "tbb", "hwloc"],
        plugin: Some("onnxruntime_providers_openvino_plugin"),
    },
    Build {
        name: "webgpu",
        summary: "any GPU with Vulkan, Direct3D 12 or Metal, through Dawn",
        package: "onnxruntime-webgpu",
        oldest: "1.24",
        library_folder: "onnxruntime/capi",
        libraries: &["onnxruntime", "dxcompiler", "dxil"],
        plugin: None,
    },
    Build {
        name: "webgpu-plugin",
        summary: "the same as a plugin for the cpu build",
        package: "onnxruntime-ep-webgpu",
        oldest: "0.4",
        library_folder: "onnxruntime_ep_webgpu",
        libraries: &["onnxruntime", "dxcompiler", "dxil"],
        plugin: Some("onnxruntime_providers_webgpu"),
    },
    Build {
        name: "cann",
        summary: "Huawei Ascend accelerators",
        package: "onnxruntime-cann",
        oldest: "1.24",
        library_folder: "onnxruntime/capi",
        libraries: &["onnxruntime"],
        plugin: None,
    },
    Build {
        name: "migraphx",
        summary: "AMD GPUs",
        package: "onnxruntime-migraphx",
        oldest: "1.24",
        library_folder: "onnxruntime/capi",
        libraries: &["onnxruntime"],
        plugin: None,
    },
    Build {
        name: "directml",
        summary: "any GPU with DirectX 12, on Windows",
        package: "onnxruntime-directml",
        oldest: "1.24",
        library_folder: "onnxruntime/capi",
        libraries: &["onnxruntime", "DirectML"],
        plugin: None,
    },
    Build {
        name: "qnn",
        summary: "Qualcomm NPUs and GPUs, as a plugin for the cpu build",
        package: "onnxruntime-qnn",
        oldest: "2.3",
        library_folder: "onnxruntime_qnn",
        libraries: &["onnxruntime", "Qnn"],
        plugin: Some("onnxruntime_providers_qnn"),
    },
];

impl Build {
    /// The build of this name, or the first that brings the provider of this name.
    ///
    /// # Errors
    /// [`InstallError::UnknownBuild`] with the names that exist; [`InstallError::NoBuild`] for a provider
    /// that no wheel brings.
    pub fn named(name: &str) -> Result<&'static Self, InstallError> {
        if let Some(build) = BUILDS.iter().find(|build| build.name == name) {
            return Ok(build);
        }
        match super::Provider::named(name) {
            Ok(provider) => provider.builds().next().ok_or(InstallError::NoBuild {
                provider: provider.name,
                instead: provider.obtained,
            }),
            Err(_) => {
                let available = BUILDS.iter().map(|build| build.name).collect();
                Err(InstallError::UnknownBuild { name: name.to_owned(), available })
            }
        }
    }

    /// Refuses what is no version, so that `pip` cannot take it for an option, and what is too old.
    pub(in super::super) fn check_version(
        &self,
        version: Option<&str>,
    ) -> Result<(), InstallError> {
        let Some(version) = version else { return Ok(()) };
        let marks = |c: char| c.is_ascii_alphanumeric() || ".+-_!".contains(c);
        let digit = |c: char| c.is_ascii_digit();
        match parse_version(version) {
            Some(parsed) if version.starts_with(digit) && version.chars().all(marks) => {
                if Some(parsed) < parse_version(self.oldest) {
                    let version = version.to_owned();
                    return Err(InstallError::TooOld { version, oldest: self.oldest });
                }
                Ok(())
            }
            _ => Err(InstallError::Version { version: version.to_owned() }),
        }
    }

    /// What `pip` is asked for.
    pub(in super::super) fn requirement(&self, version: Option<&str>) -> String {
        match version {
            Some(version) => format!("{}=={version}", self.package),
            None => format!("{}>={}", self.package, self.oldest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_cannot_smuggle_arguments() {
        let cpu = &BUILDS[0];
        for version in ["1.32.0", "1.24", "1.33.0.dev20261101", "1.100.0", "2.0"] {
            cpu.check_version(Some(version)).expect(version);
        }
        cpu.check_version(None).expect("the newest");
        for version in ["", "--index-url", "1.0 --pre", "1.30;evil", "latest", "1.30\n", "1"] {
            let error = cpu.check_version(Some(version)).expect_err(version);
            assert!(matches!(error, InstallError::Version { .. }), "{error:?}");
        }
    }

    #[test]
    fn old_versions_are_refused_before_anything_is_fetched() {
        let error = BUILDS[0].check_version(Some("1.9.1")).expect_err("old").to_string();
        assert!(error.contains("1.9.1") && error.contains("1.24 or newer"), "{error}");
    }

    #[test]
    fn every_build_of_the_runtime_is_one_that_the_program_can_use() {
        for build in BUILDS {
            let oldest = parse_version(build.oldest).expect("a version");
            let usable = oldest >= crate::engine::library::OLDEST;
            assert!(usable || build.plugin.is_some(), "{}", build.name);
            assert_eq!(BUILDS.iter().filter(|other| other.name == build.name).count(), 1);
        }
    }

    #[test]
    fn a_provider_names_the_build_that_brings_it() {
        assert_eq!(Build::named("cpu").expect("known").package, "onnxruntime");
        assert_eq!(Build::named("tensorrt").expect("known").name, "cuda");
        let error = Build::named("xnnpack").expect_err("no wheel").to_string();
        assert!(error.contains("xnnpack") && error.contains("--use_xnnpack"), "{error}");
        let error = Build::named("gpu").expect_err("unknown").to_string();
        assert!(error.contains("\"gpu\"") && error.contains("cpu, cuda"), "{error}");
    }
}
