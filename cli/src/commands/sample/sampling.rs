//! The settings of solver and guidance.

use super::settings::Settings;
use crate::exit::Failure;
use pixart_runtime::pipeline::Request;
use pixart_runtime::sampler::{EasyCache, GuidanceEnd, SamplingMethod, UncondMask};

impl Settings {
    /// Puts solver and guidance into `request`, with the solver's own defaults for what is not given.
    pub fn apply_sampling(&self, request: &mut Request) -> Result<(), Failure> {
        let method = self.method()?;
        request.sampling_method = method;
        request.sampling_steps = self.sampling_steps.unwrap_or(method.default_steps());
        request.guidance_scale = self.guidance_scale.unwrap_or(method.default_guidance_scale());
        request.guidance_end = self.guidance_end()?;
        request.guidance_rescale = self.guidance_rescale.unwrap_or(0.0);
        request.easycache = self.easycache()?;
        let mask = self.uncond_mask.as_deref().map(str::parse::<UncondMask>).transpose();
        request.uncond_mask =
            mask.map_err(|error| Failure::request(format!("uncond_mask: {error}")))?;
        Ok(())
    }

    fn method(&self) -> Result<SamplingMethod, Failure> {
        let Some(name) = self.sampling_method.as_deref() else {
            return Ok(SamplingMethod::default());
        };
        name.parse().map_err(|error| {
            let known = SamplingMethod::ALL.map(|method| method.name().to_owned());
            let hint = crate::config::nearest(&name.to_lowercase(), &known);
            let hint = hint.map_or(String::new(), |name| format!("; did you mean `{name}`?"));
            Failure::request(format!("sampling_method: {error}{hint}"))
        })
    }

    fn guidance_end(&self) -> Result<GuidanceEnd, Failure> {
        match (self.guidance_end, self.guidance_last_step) {
            (Some(_), Some(_)) => Err(Failure::request(
                "guidance_end and guidance_last_step: found both, expected one of them: both say \
                 where guidance stops",
            )),
            (Some(fraction), None) => Ok(GuidanceEnd::Fraction(fraction)),
            (None, Some(step)) => Ok(GuidanceEnd::Step(step)),
            (None, None) => Ok(GuidanceEnd::default()),
        }
    }

    fn easycache(&self) -> Result<Option<EasyCache>, Failure> {
        // What a config or a picture asks for is called off so.
        if self.easycache == Some(0.0) {
            return Ok(None);
        }
        let Some(threshold) = self.easycache else {
            for (name, given) in
                [("easycache_start", self.easycache_start), ("easycache_end", self.easycache_end)]
            {
                if given.is_some() {
                    return Err(Failure::request(format!(
                        "{name}: found it without easycache, which it is about; give --easycache too"
                    )));
                }
            }
            return Ok(None);
        };
        let default = EasyCache::default();
        Ok(Some(EasyCache {
            threshold,
            start: self.easycache_start.unwrap_or(default.start),
            end: self.easycache_end.unwrap_or(default.end),
        }))
    }
}
