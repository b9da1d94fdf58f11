//! Our own functions of f64 against the system library.

use qmesh_kernels::real::{exp, ln, sin_cos};

fn assert_near(x: f64, ours: f64, theirs: f64, tolerance: f64) {
    assert!((ours - theirs).abs() <= tolerance * theirs.abs().max(1.0), "at {x}: {ours} for {theirs}");
}

#[test]
fn functions_agree_with_the_system_library() {
    for i in 0..20_000 {
        let x = f64::from(i) * 0.07 + 1e-9;
        assert_near(x, ln(x), x.ln(), 4e-16);
        assert_near(-x, exp(-x / 10.0), (-x / 10.0).exp(), 4e-16);
        for x in [x, x * 700.0] {
            let (sin, cos) = sin_cos(x);
            assert_near(x, sin, x.sin(), 4e-16);
            assert_near(x, cos, x.cos(), 4e-16);
        }
    }
    assert_eq!((ln(1.0), exp(0.0), sin_cos(0.0)), (0.0, 1.0, (0.0, 1.0)));
}
