//! What layers take in of a token beside the hidden state: rows that are made where tokens are embedded, and travel with it.

use candle_core::{Result, Tensor};
use qmesh_kernels::{Cpu, math::GatedActivation};
use qmesh_models::spec::Activation;

use crate::{
    linear::{Linear, Norm, Residual, project, project_add},
    ops,
};

/// What makes the rows of all layers, of ids and of what they are embedded to.
#[derive(Debug)]
pub(crate) struct LayerInputMaker {
    /// (vocab, all layers' rows)
    pub(crate) table: Linear,
    /// From an embedding to all layers' rows.
    pub(crate) projection: Linear,
    /// On each of these.
    pub(crate) norm: Norm,
}

/// Rows of a step for the layers from a shard's first one on.
#[derive(Debug, Default)]
pub(crate) struct LayerInputRows {
    /// (rows, layers, width)
    values: Vec<f32>,
    layers: usize,
    width: usize,
}

/// Where a layer takes its row in.
#[derive(Debug)]
pub(crate) struct LayerInput {
    /// Which of the shard's layers this is.
    pub(crate) layer: usize,
    pub(crate) activation: Activation,
    pub(crate) gate: Linear,
    pub(crate) projection: Linear,
    pub(crate) residual: Residual,
}

impl LayerInputMaker {
    /// Those of tokens that are embedded to x (rows, hidden): (√width · t + norm(p)) / √2, where t is what the table has, and p the
    /// projection of x, divided by the root of the hidden width.
    pub(crate) fn make(&self, cpu: Cpu<'_>, ids: &[u32], x: &Tensor) -> Result<LayerInputRows> {
        let (all, width) = (self.table.matrix.cols, self.norm.gain.len());
        let root = (self.projection.matrix.cols as f32).sqrt();
        let projected = project(cpu, x, None, &[&self.projection])?;
        let mut values = ops::read(&projected, |projected| projected.iter().map(|x| x / root).collect::<Vec<_>>())?;
        let rows = ids.iter().zip(values.chunks_exact_mut(all)).collect();
        cpu.team.each(rows, |(id, row): (&u32, &mut [f32])| {
            self.norm.apply(cpu, row);
            let mut looked_up = vec![0.0; all];
            self.table.matrix.look_up(cpu.simd, &[*id], &mut looked_up);
            for (x, looked_up) in row.iter_mut().zip(looked_up) {
                *x = (looked_up * (width as f32).sqrt() + *x) * std::f32::consts::FRAC_1_SQRT_2;
            }
        });
        Ok(LayerInputRows { values, layers: all / width, width })
    }
}

impl LayerInputRows {
    /// Of rows (rows, hidden and then those of so many layers), which are hidden states alone afterwards.
    pub(crate) fn split(rows: &mut Vec<f32>, hidden: usize, layers: usize, width: usize) -> Self {
        let stride = hidden + layers * width;
        let values = rows.chunks_exact(stride).flat_map(|row| &row[hidden..]).copied().collect();
        *rows = rows.chunks_exact(stride).flat_map(|row| &row[..hidden]).copied().collect();
        Self { values, layers, width }
    }

    /// Hidden states (rows, hidden), with those of the layers behind the first `taken` ones behind each.
    pub(crate) fn joined(&self, hidden: Vec<f32>, taken: usize) -> Vec<f32> {
        if self.layers <= taken || self.values.is_empty() {
            return hidden;
        }
        let rows = self.values.chunks_exact(self.layers * self.width);
        let width = hidden.len() / rows.len();
        let joined =
            hidden.chunks_exact(width).zip(rows).flat_map(|(x, row)| x.iter().chain(&row[taken * self.width..]));
        joined.copied().collect()
    }

    /// That of a row for the shard's layer.
    fn of(&self, row: usize, layer: usize) -> &[f32] {
        &self.values[(row * self.layers + layer) * self.width..][..self.width]
    }
}

impl LayerInput {
    /// x + norm(projection · (act(gate · x) · row)) of x (rows, hidden), which has all rows of the step, or those of `rows`.
    pub(crate) fn take_in(
        &self,
        cpu: Cpu<'_>,
        x: &Tensor,
        inputs: &LayerInputRows,
        rows: Option<&[usize]>,
    ) -> Result<Tensor> {
        let gate = project(cpu, x, None, &[&self.gate])?;
        let gated = ops::map("layer_input", &gate, |gate| {
            let mut gated = gate.to_vec();
            for (at, gate) in gated.chunks_exact_mut(inputs.width).enumerate() {
                let up = Some(inputs.of(rows.map_or(at, |rows| rows[at]), self.layer));
                GatedActivation { activation: self.activation, gate, up }.run(cpu.simd);
            }
            gated
        })?;
        project_add(cpu, &gated, &self.projection, &self.residual, x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_off_and_the_rest_travels_on() {
        // Two rows of a hidden state of 2 and three layers' rows of 1.
        let mut rows = vec![0.1, 0.2, 1.0, 2.0, 3.0, 0.3, 0.4, 4.0, 5.0, 6.0];
        let inputs = LayerInputRows::split(&mut rows, 2, 3, 1);
        assert_eq!(rows, [0.1, 0.2, 0.3, 0.4]);
        assert_eq!([(0, 0), (0, 2), (1, 1)].map(|(row, layer)| inputs.of(row, layer)[0]), [1.0, 3.0, 5.0]);
        assert_eq!(inputs.joined(rows.clone(), 2), [0.1, 0.2, 3.0, 0.3, 0.4, 6.0]);
        assert_eq!(inputs.joined(rows.clone(), 3), rows);
        assert_eq!(LayerInputRows::default().joined(rows.clone(), 1), rows);
    }
}
