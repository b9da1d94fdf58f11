//! Products of heads: each has a matrix of its own, which takes a part of the row, all of them in one fork and join.

use qmesh_kernels::{Cpu, columns::Columns};

use super::{Activations, Linear, Share};

/// How heads lie in rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadWidths {
    /// Elements from one head to the next in what comes in; a head's matrix takes the first of them.
    pub(crate) input: usize,
    /// Elements from one head to the next in what comes out; behind a matrix's outputs there are zeros.
    pub(crate) output: usize,
}

/// The products of each head of x (rows, heads, input) with the head's matrix: (rows, heads, output).
pub(crate) fn head_products(cpu: Cpu<'_>, x: &[f32], heads: &[Linear], widths: HeadWidths) -> Vec<f32> {
    let stride = heads.len() * widths.input;
    let inputs = cpu.team.map(heads.iter().enumerate().collect(), |(head, linear): (usize, &Linear)| {
        Activations::of_columns(cpu, x, stride, head * widths.input, linear)
    });
    let rows = x.len() / stride;
    let len = Share::len(cpu, rows, heads.iter().map(|head| head.matrix.groups()).sum());
    let (mut shares, mut columns) = (Vec::new(), Vec::new());
    for (linear, x) in heads.iter().zip(&inputs) {
        for share in Share::cut(linear, len) {
            columns.push(share.width());
            shares.push(Some((share, x)));
        }
        if widths.output > linear.matrix.rows {
            columns.push(widths.output - linear.matrix.rows);
            shares.push(None);
        }
    }
    let mut out = vec![0.0; rows * heads.len() * widths.output];
    let tasks = shares.into_iter().zip(Columns::split(&mut out, &columns));
    let tasks = tasks.filter_map(|(share, columns)| Some((share?, columns))).collect();
    cpu.team.each(tasks, |((share, x), mut columns): ((Share<'_>, &Activations), Columns<'_, f32>)| {
        share.write(cpu, x, &mut columns);
    });
    out
}

#[cfg(test)]
mod tests {
    use qmesh_kernels::lanes::Simd;
    use qmesh_models::tensor::TensorType;
    use qmesh_team::Team;

    use super::*;
    use crate::random::{noise, random_matrix};

    #[test]
    fn each_head_meets_its_own_part_and_no_other() {
        let (rows, heads, outputs, widths) = (3, 5, 32, HeadWidths { input: 72, output: 40 });
        let team = Team::new(2).unwrap();
        let cpu = Cpu { simd: Simd::available()[0], team: &team };
        let x = noise(rows * heads * widths.input, 1);
        for (dtype, tolerance) in [(TensorType::F32, 1e-5), (TensorType::Q8_0, 2e-2)] {
            let (matrix, weight) = random_matrix(dtype, heads * outputs, 64);
            let linears: Vec<_> =
                matrix.stacked(heads).unwrap().into_iter().map(|matrix| Linear { matrix, bias: None }).collect();
            let weight = weight.to_vec2::<f32>().unwrap();
            let out = head_products(cpu, &x, &linears, widths);
            assert_eq!(out.len(), rows * heads * widths.output);
            for (at, y) in out.chunks(widths.output).enumerate() {
                let (head, x) = (at % heads, &x[at * widths.input..][..64]);
                for (output, y) in y.iter().enumerate() {
                    let dot = |weight: &[f32]| weight.iter().zip(x).map(|(w, x)| w * x).sum::<f32>();
                    let expected = if output < outputs { dot(&weight[head * outputs + output]) } else { 0.0 };
                    assert!((y - expected).abs() <= tolerance * 64.0, "{dtype} {at} {output}: {y} for {expected}");
                }
            }
            let alone = head_products(cpu, &x[heads * widths.input..][..heads * widths.input], &linears, widths);
            assert_eq!(alone, out[heads * widths.output..][..heads * widths.output], "rows do not know each other");
        }
    }
}
