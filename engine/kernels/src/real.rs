//! ln, exp, sine and cosine in f64, from additions, multiplications and divisions only: the same bits on every machine.
//!
//! Good to about 1e-15; used where a table or a single value is made, not in inner loops.

/// ln 2 in two parts; the first has 21 trailing zero bits, so that small multiples of it are exact.
const LN_2: [f64; 2] = [6.931_471_803_691_238e-1, 1.908_214_929_270_587_7e-10];
/// π/2 in three parts, the first two with 20 trailing zero bits.
const HALF_PI: [f64; 3] = [1.570_796_326_734_125_6, 6.077_100_506_303_966e-11, 2.022_266_248_795_950_6e-21];

/// The natural logarithm of a positive normal number.
pub fn ln(x: f64) -> f64 {
    // x = m·2^e with m in [√½, √2).
    const SQRT_HALF: i64 = 0x3fe6_a09e_667f_3bcd;
    let offset = x.to_bits().cast_signed() - SQRT_HALF;
    let exponent = (offset >> 52) as f64;
    let m = f64::from_bits((SQRT_HALF + (offset & 0x000f_ffff_ffff_ffff)).cast_unsigned());
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let series = (0..12).rev().fold(0.0, |sum, i| sum * square + 2.0 / f64::from(2 * i + 1));
    exponent * LN_2[0] + (s * series + exponent * LN_2[1])
}

/// e^x for |x| < 700.
pub fn exp(x: f64) -> f64 {
    let n = (x * std::f64::consts::LOG2_E).round();
    let r = (x - n * LN_2[0]) - n * LN_2[1];
    let series = (1..=14).rev().fold(1.0, |sum, i| sum * r / f64::from(i) + 1.0);
    series * f64::from_bits(((n as i64 + 1023) << 52).cast_unsigned())
}

/// Sine and cosine of 0 ≤ x < 1e6; beyond, less and less accurate.
pub fn sin_cos(x: f64) -> (f64, f64) {
    let n = (x * std::f64::consts::FRAC_2_PI).round();
    let r = ((x - n * HALF_PI[0]) - n * HALF_PI[1]) - n * HALF_PI[2];
    let square = r * r;
    // 1 − r²/(a·(a+1))·(1 − …): the Taylor series from its end.
    let series = |first: i32| {
        (0..9).rev().map(|i| first + 2 * i).fold(1.0, |sum, a| 1.0 - square / f64::from(a * (a + 1)) * sum)
    };
    let (sin, cos) = (r * series(2), series(1));
    match n as i64 & 3 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}
