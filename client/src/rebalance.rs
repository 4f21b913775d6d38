//! Which queues of a topic are whose: every member of a group computes the same answer for itself.

/// The share of the member called `own` among `members`: neighbouring queues, the first members getting
/// one more where the division leaves a rest. It is what Java's members compute by default, so that
/// members of both kinds share a group. Both lists must be sorted, and the same for everyone.
pub(crate) fn allocate<'q, T>(queues: &'q [T], members: &[String], own: &str) -> &'q [T] {
    let Some(index) = members.iter().position(|member| member == own) else { return &[] };
    let (share, rest) = (queues.len() / members.len(), queues.len() % members.len());
    let (start, len) =
        if index < rest { (index * (share + 1), share + 1) } else { (index * share + rest, share) };
    queues.get(start..start + len).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shares_are_those_of_java() {
        let queues: Vec<u32> = (0..8).collect();
        let members = ["a", "b", "c"].map(str::to_owned);
        assert_eq!(allocate(&queues, &members, "a"), [0, 1, 2]);
        assert_eq!(allocate(&queues, &members, "b"), [3, 4, 5]);
        assert_eq!(allocate(&queues, &members, "c"), [6, 7]);
        assert_eq!(allocate(&queues, &members, "stranger"), [0; 0]);
        assert_eq!(allocate(&queues[..2], &members, "c"), [0; 0]);
        assert_eq!(allocate(&queues[..2], &members, "b"), [1]);
    }

    proptest! {
        #[test]
        fn every_queue_has_one_owner(queues in 0_usize..100, members in 1_usize..20) {
            let queues: Vec<usize> = (0..queues).collect();
            let members: Vec<String> = (0..members).map(|number| number.to_string()).collect();
            let all: Vec<usize> =
                members.iter().flat_map(|own| allocate(&queues, &members, own)).copied().collect();
            prop_assert_eq!(all, queues);
        }
    }
}
