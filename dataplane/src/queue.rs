//! A queue that mostly holds very little: its first elements lie in it, and only what comes on top of them is allocated.

use std::array;
use std::collections::VecDeque;

/// First in, first out; room for `N` without an allocation.
pub(crate) struct Queue<T, const N: usize> {
    /// Filled from the front, without gaps.
    first: [Option<T>; N],
    /// Holds nothing unless all of `first` are there. None until then: that costs nothing to drop.
    rest: Option<VecDeque<T>>,
}

impl<T, const N: usize> Default for Queue<T, N> {
    fn default() -> Self {
        Self {
            first: array::from_fn(|_| None),
            rest: None,
        }
    }
}

impl<T, const N: usize> Queue<T, N> {
    pub fn push_back(&mut self, element: T) {
        match self.first.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(element),
            None => self.rest.get_or_insert_default().push_back(element),
        }
    }

    pub fn pop_front(&mut self) -> Option<T> {
        let element = self.first[0].take()?;
        self.first.rotate_left(1);
        self.first[N - 1] = self.rest.as_mut().and_then(VecDeque::pop_front);
        Some(element)
    }

    pub fn front(&self) -> Option<&T> {
        self.first[0].as_ref()
    }

    pub fn front_mut(&mut self) -> Option<&mut T> {
        self.first[0].as_mut()
    }

    pub fn get(&self, index: usize) -> Option<&T> {
        match self.first.get(index) {
            Some(place) => place.as_ref(),
            None => self.rest.as_ref()?.get(index - N),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.first[0].is_none()
    }

    pub fn len(&self) -> usize {
        self.first.iter().flatten().count() + self.rest.as_ref().map_or(0, VecDeque::len)
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.first.iter().flatten().chain(self.rest.iter().flatten())
    }

    /// Empties it.
    pub fn take(&mut self) -> impl Iterator<Item = T> + use<T, N> {
        let Self { first, rest } = std::mem::take(self);
        first.into_iter().flatten().chain(rest.into_iter().flatten())
    }
}

impl<T, const N: usize> Extend<T> for Queue<T, N> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, elements: I) {
        elements.into_iter().for_each(|element| self.push_back(element));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any order of pushes and pops, as a `VecDeque` does it; each bit of `steps` is one of them.
    fn behaves<const N: usize>(steps: u32) {
        let (mut queue, mut model) = (Queue::<_, N>::default(), VecDeque::new());
        for step in 0..12 {
            if steps >> step & 1 == 1 {
                queue.push_back(step);
                model.push_back(step);
            } else {
                assert_eq!(queue.pop_front(), model.pop_front());
            }
            assert!(queue.iter().eq(&model));
            assert_eq!((queue.len(), queue.is_empty()), (model.len(), model.is_empty()));
            assert_eq!(queue.front(), model.front());
            assert!((0..=model.len()).all(|at| queue.get(at) == model.get(at)));
        }
        if let (Some(own), Some(other)) = (queue.front_mut(), model.front_mut()) {
            (*own, *other) = (100, 100);
        }
        assert!(queue.take().eq(model));
        assert!(queue.is_empty() && queue.rest.is_none());
        queue.extend(0..3);
        assert!(queue.take().eq(0..3));
    }

    #[test]
    fn it_is_a_queue() {
        for steps in 0..1 << 12 {
            behaves::<1>(steps);
            behaves::<2>(steps);
        }
    }

    #[test]
    fn what_has_a_place_in_it_allocates_nothing() {
        let mut queue = Queue::<_, 2>::default();
        for n in 0..100 {
            queue.push_back(n);
            queue.push_back(n);
            assert_eq!((queue.pop_front(), queue.pop_front()), (Some(n), Some(n)));
        }
        assert!(queue.rest.is_none());
        queue.extend(0..3);
        assert!(queue.rest.is_some());
    }
}
