//! Convolutions whose kernel moves by its own side: patches that do not overlap.

use pixart_exporter::graph::{GraphBuilder, Value, dim::Dim};

use super::{GradientError, Gradients, Step};

/// y = convolution of `x[batch, in, height, width]` with kernels of side s that move by s, either all
/// channels mixed or each for itself, and a bias.
///
/// Such a convolution is a product of every patch with the kernel, so its gradients are as well:
/// `[batch, rows, columns]` patches of `[channels, s, s]` numbers.
pub(super) fn conv(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let (x, weight, dy) = (step.input(0)?, step.input(1)?, step.cotangent()?);
    let expected = "a kernel that moves by its own sides, without padding and dilation, over all \
                    channels or over each for itself";
    let all =
        |name: &str, value: i64| step.ints(name).is_none_or(|v| v.iter().all(|&x| x == value));
    let kernel: Option<Vec<i64>> = weight.shape().iter().map(Dim::as_const).collect();
    let (4, Some(&[outputs, inputs, height, width])) = (x.rank(), kernel.as_deref()) else {
        return step.unsupported("this kernel", expected);
    };
    let group = step.int("group").unwrap_or(1);
    let depthwise = group == outputs && inputs == 1;
    let patches = step.ints("strides").unwrap_or(&[1, 1]) == [height, width];
    if !patches || !all("pads", 0) || !all("dilations", 1) || !(group == 1 || depthwise) {
        return step.unsupported("this window", expected);
    }
    if step.attribute("auto_pad").is_some() {
        return step.unsupported("automatic padding", expected);
    }
    let cut = Cut {
        batch: x.shape()[0].clone(),
        channels: x.shape()[1].clone(),
        rows: dy.shape()[2].clone(),
        columns: dy.shape()[3].clone(),
        kernel: [Dim::from(height), Dim::from(width)],
    };
    let (dx, dweight) = match depthwise {
        true => depthwise_patches(b, step, &cut, x, weight, dy)?,
        false => mixed_patches(b, step, &cut, x, weight, dy)?,
    };
    let dbias = match step.wants(2) {
        true => {
            let sum = b.reduce_sum(dy, &[0, 2, 3])?;
            Some(b.reshape(&sum, &[Dim::from(outputs)])?)
        }
        false => None,
    };
    Ok(vec![dx, dweight, dbias])
}

/// How a picture is cut into patches.
struct Cut {
    batch: Dim,
    channels: Dim,
    rows: Dim,
    columns: Dim,
    kernel: [Dim; 2],
}

impl Cut {
    /// `[batch, channels, rows, kernel rows, columns, kernel columns]`
    fn shape(&self) -> [Dim; 6] {
        let Self { batch, channels, rows, columns, kernel: [height, width] } = self;
        [batch, channels, rows, height, columns, width].map(Dim::clone)
    }

    /// The whole patches of a picture, in [`Cut::shape`].
    fn patches(&self, b: &mut GraphBuilder, x: &Value) -> Result<Value, GradientError> {
        let mut x = x.clone();
        for (axis, size) in
            [(2, &self.rows * &self.kernel[0]), (3, &self.columns * &self.kernel[1])]
        {
            if x.shape()[axis] != size {
                x = b.take(&x, axis, &size)?;
            }
        }
        Ok(b.reshape(&x, &self.shape())?)
    }

    /// The picture of `like`'s shape that patches in [`Cut::shape`] make; zeros where no patch is.
    fn picture(
        &self,
        b: &mut GraphBuilder,
        patches: &Value,
        like: &Value,
    ) -> Result<Value, GradientError> {
        let Self { batch, channels, rows, columns, kernel: [height, width] } = self;
        let shape = [batch.clone(), channels.clone(), rows * height, columns * width];
        let mut x = b.reshape(patches, &shape)?;
        for axis in [2, 3] {
            if x.shape()[axis] != like.shape()[axis] {
                x = b.pad_end(&x, axis, &like.shape()[axis])?;
            }
        }
        Ok(x)
    }
}

/// Gradients of the picture and of the kernel `[outputs, channels, s, s]`.
fn mixed_patches(
    b: &mut GraphBuilder,
    step: &Step,
    cut: &Cut,
    x: &Value,
    weight: &Value,
    dy: &Value,
) -> Result<(Option<Value>, Option<Value>), GradientError> {
    let Cut { batch, channels, rows, columns, kernel: [height, width] } = cut;
    let outputs = &weight.shape()[0];
    let count = &(batch * rows) * columns;
    let inner = &(channels * height) * width;
    // dy as [outputs, patches].
    let dy = b.transpose(dy, &[1, 0, 2, 3])?;
    let dy = b.reshape(&dy, &[outputs.clone(), count.clone()])?;
    let mut gradients = (None, None);
    if step.wants(0) {
        let matrix = b.reshape(weight, &[outputs.clone(), inner.clone()])?;
        let dy = b.transpose(&dy, &[1, 0])?;
        let patches = b.matmul(&dy, &matrix)?;
        let split = [batch, rows, columns, channels, height, width].map(Dim::clone);
        let patches = b.reshape(&patches, &split)?;
        let patches = b.transpose(&patches, &[0, 3, 1, 4, 2, 5])?;
        gradients.0 = Some(cut.picture(b, &patches, x)?);
    }
    if step.wants(1) {
        let patches = cut.patches(b, x)?;
        let patches = b.transpose(&patches, &[0, 2, 4, 1, 3, 5])?;
        let patches = b.reshape(&patches, &[count, inner])?;
        let matrix = b.matmul(&dy, &patches)?;
        gradients.1 = Some(b.reshape(&matrix, weight.shape())?);
    }
    Ok(gradients)
}

/// Gradients of the picture and of the kernel `[channels, 1, s, s]`.
fn depthwise_patches(
    b: &mut GraphBuilder,
    step: &Step,
    cut: &Cut,
    x: &Value,
    weight: &Value,
    dy: &Value,
) -> Result<(Option<Value>, Option<Value>), GradientError> {
    let Cut { batch, channels, rows, columns, kernel: [height, width] } = cut;
    let one = Dim::from(1);
    let shape = [batch, channels, rows, &one, columns, &one].map(Dim::clone);
    let dy = b.reshape(dy, &shape)?;
    let mut gradients = (None, None);
    if step.wants(0) {
        let shape = [channels, &one, height, &one, width].map(Dim::clone);
        let kernel = b.reshape(weight, &shape)?;
        let patches = b.mul(&dy, &kernel)?;
        gradients.0 = Some(cut.picture(b, &patches, x)?);
    }
    if step.wants(1) {
        let patches = cut.patches(b, x)?;
        let products = b.mul(&patches, &dy)?;
        let sum = b.reduce_sum(&products, &[0, 2, 4])?;
        gradients.1 = Some(b.reshape(&sum, weight.shape())?);
    }
    Ok(gradients)
}

#[cfg(test)]
mod tests {
    use pixart_exporter::graph::Window;

    use crate::gradient::check::Case;

    #[test]
    fn patches_of_all_channels() {
        let case = Case::new(&["n 3 h%2 w%2"]).size("n", 2).size("h", 4).size("w", 6);
        case.check(|b, x| b.conv2d("proj", &x[0], 5, Window::patches(2)));
    }

    #[test]
    fn patches_of_each_channel_that_leave_some_out() {
        let case = Case::new(&["n 3 h w", "3 1 2 2", "3"]).size("n", 2).size("h", 5).size("w", 6);
        let case = case.size("rows", 2).size("columns", 3);
        case.check(|b, x| {
            let rows = b.floor_div("rows", &x[0].shape()[2].clone(), 2)?;
            let columns = b.floor_div("columns", &x[0].shape()[3].clone(), 2)?;
            b.depthwise_patches(&x[0], &x[1], &x[2], 2, &[rows, columns])
        });
    }

    #[test]
    fn overlapping_windows_are_refused() {
        let case = Case::new(&["n 3 h w"]).size("n", 2).size("h", 4).size("w", 6);
        let error = case.refused(|b, x| b.conv2d("conv_in", &x[0], 5, Window::same(3)));
        assert!(error.contains("conv_in/Conv (Conv)") && error.contains("own sides"), "{error}");
    }
}
