//! Which of several quantisations fits.

use super::{
    super::quantisations::{Quantisation, fitting},
    *,
};

#[test]
fn the_largest_that_fits_is_found_and_what_the_next_one_lacks() {
    const MB: u64 = 1_000_000;
    let spec = spec(&[100 * MB; 8], MB, HeadMatrix::Own);
    let worker = |memory_bytes| Capacity { name: "w".into(), memory_bytes, threads: 1, speed: None };
    let input = |memory: u64| PlanInput::new(&spec, vec![worker(memory), worker(memory)], 256, 256, 64);
    let own: u64 = spec.tensors.iter().map(|tensor| tensor.bytes).sum();
    let all = || {
        let sizes = [("Q8_0", 4 * own), ("Q2_K", own / 2), ("Q4_K_M", own), ("Q6_K", 2 * own)];
        sizes.map(|(name, bytes)| Quantisation { name: name.to_owned(), bytes }).to_vec()
    };
    // What it takes beside the weights, by a worker that cannot hold them.
    let Err(PlanError::DoesNotFit(shortfall)) = solve(&input(MB)) else { panic!("one MB is too little") };
    let rest = shortfall.needed_bytes - own;

    let found = fitting(&input((own + rest) / 2 + 60 * MB), all());
    assert_eq!(found.fits.as_ref().map(|fits| fits.name.as_str()), Some("Q4_K_M"), "{found:?}");
    assert_eq!(found.too_large.as_ref().map(|next| next.name.as_str()), Some("Q6_K"));
    let lacks = 2 * own - (own + 120 * MB);
    assert!(found.missing_bytes.abs_diff(lacks) < 8 * MB, "{} and not {lacks}", found.missing_bytes);
    assert!(found.to_string().starts_with("Q4_K_M is the largest of the repository that fits (8"), "{found}");
    assert!(found.to_string().contains("; Q6_K needs about 6"), "{found}");

    let none = fitting(&input(rest / 2 + 50 * MB), all());
    assert_eq!((none.fits.is_none(), none.too_large.map(|next| next.name)), (true, Some("Q2_K".to_owned())));
    let every = fitting(&input(8 * own), all());
    assert_eq!((every.fits.map(|fits| fits.name), every.too_large), (Some("Q8_0".to_owned()), None));
}
