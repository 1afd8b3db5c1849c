//! Pages in the shape that the web has: a few large resources and many small ones.

/// Resources of a page.
pub const RESOURCES: usize = 70;
/// Bytes of all bodies of a page: 2.2 MB.
pub const PAGE_BYTES: usize = 2_200_000;
/// The smallest resource: a transparent GIF of one pixel.
const RESOURCE_BYTES_MIN: usize = 43;
/// Standard deviation of the logarithm of a size: half of the resources then have less than 9 KB, and the largest tenth
/// about half of a page's bytes.
const SPREAD: f64 = 1.6;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From 0 to 1.
    fn fraction(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Mean 0, standard deviation 1.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.fraction()).sum::<f64>() - 6.0
    }
}

/// Sizes of a page's resources, in bytes: log-normal, scaled to [`PAGE_BYTES`] in all. The same for the same seed.
pub fn sizes(seed: u64) -> Vec<usize> {
    let mut random = Random::new(seed);
    let weights: Vec<f64> = (0..RESOURCES).map(|_| (SPREAD * random.normal()).exp()).collect();
    let scale = (PAGE_BYTES - RESOURCES * RESOURCE_BYTES_MIN) as f64 / weights.iter().sum::<f64>();
    let mut sizes: Vec<usize> = weights
        .iter()
        .map(|weight| RESOURCE_BYTES_MIN + (weight * scale) as usize)
        .collect();
    // What rounding left out.
    sizes[0] += PAGE_BYTES - sizes.iter().sum::<usize>();
    sizes
}

/// A page for each of many tests, with what its resources hold.
pub struct Pages {
    sizes: Vec<Vec<usize>>,
    noise: Vec<u8>,
}

/// Bodies of neighbours begin this far apart in the noise: one that is taken for another shows.
const STRIDE_BYTES: usize = 13;

impl Pages {
    /// Pages 0 to `count - 1`.
    pub fn new(count: usize) -> Self {
        let sizes: Vec<Vec<usize>> = (0..count as u64).map(sizes).collect();
        let longest = sizes.iter().flatten().max().copied().unwrap_or(0);
        let mut random = Random::new(u64::MAX);
        let noise = (0..longest + count * RESOURCES * STRIDE_BYTES).map(|_| random.draw() as u8);
        Self {
            noise: noise.collect(),
            sizes,
        }
    }

    /// The body of one resource.
    pub fn body(&self, page: usize, resource: usize) -> &[u8] {
        let at = (page * RESOURCES + resource) * STRIDE_BYTES;
        &self.noise[at..at + self.sizes[page][resource]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_few_large_resources_and_many_small_ones() {
        for seed in 0..100 {
            let mut sizes = sizes(seed);
            assert_eq!((sizes.len(), sizes.iter().sum()), (70, 2_200_000));
            sizes.sort_unstable();
            let largest: usize = sizes[63..].iter().sum();
            assert!(sizes[35] < 20_000, "{sizes:?}");
            assert!((700_000..1_900_000).contains(&largest), "{sizes:?}");
        }
        assert_eq!(sizes(7), sizes(7));
        assert_ne!(sizes(7), sizes(8));
    }
}
