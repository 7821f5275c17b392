//! Telling of many things a few at a time.

/// Tells of at most `most` things at each call, going on where the last call ended; after the last thing comes the
/// first. `tell` is given a thing's number and says whether there is one of it.
pub fn in_turns(next: &mut usize, most: usize, mut tell: impl FnMut(usize) -> bool) {
    let first = *next;
    // Nothing is before the first one.
    let mut around = first == 0;
    for told in 0..most {
        if told > 0 && *next == first {
            return;
        }
        if !tell(*next) {
            let over = around;
            around = true;
            *next = 0;
            if over || !tell(0) {
                return;
            }
        }
        *next += 1;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::HashSet;
    use std::vec::Vec;

    use super::in_turns;

    fn told(next: &mut usize, most: usize, count: usize) -> Vec<usize> {
        let mut numbers = Vec::new();
        in_turns(next, most, |number| {
            if number < count {
                numbers.push(number);
            }
            number < count
        });
        numbers
    }

    #[test]
    fn all_are_told_of_in_as_few_calls_as_can_be() {
        for count in 0_usize..40 {
            for most in 1..20 {
                let mut next = 0;
                for _ in 0..5 {
                    let mut seen = HashSet::new();
                    for _ in 0..count.div_ceil(most) {
                        let numbers = told(&mut next, most, count);
                        assert_eq!(numbers.len(), most.min(count), "{count} by {most}: {numbers:?}");
                        assert_eq!(numbers.iter().collect::<HashSet<_>>().len(), numbers.len());
                        seen.extend(numbers);
                    }
                    assert_eq!(seen.len(), count, "{count} by {most}");
                }
            }
        }
    }

    #[test]
    fn what_becomes_less_begins_anew() {
        let mut next = 0;
        assert_eq!(told(&mut next, 3, 10), [0, 1, 2]);
        assert_eq!(told(&mut next, 3, 1), [0]);
        assert_eq!(told(&mut next, 3, 0), []);
        assert_eq!(told(&mut next, 3, 2), [0, 1]);
    }
}
