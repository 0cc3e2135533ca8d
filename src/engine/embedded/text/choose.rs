//! Choosing a token from its model's logits.

use llguidance::toktrie::SimpleVob;

use crate::engine::embedded::Choice;

/// Chooses tokens of one reply.
#[derive(Debug)]
pub(super) struct Chooser {
    choice: Choice,
    random: fastrand::Rng,
}

impl Chooser {
    pub(super) fn new(choice: Choice) -> Self {
        Self {
            random: fastrand::Rng::with_seed(choice.seed),
            choice,
        }
    }

    /// A token, among those that are allowed.
    pub(super) fn choose(&mut self, logits: &[f32], allowed: Option<&SimpleVob>) -> Option<u32> {
        let may = |token: u32| allowed.is_none_or(|allowed| allowed.is_allowed(token));
        let all = || {
            let all = logits.iter().copied().zip(0_u32..);
            all.filter(|(logit, token)| !logit.is_nan() && may(*token))
        };
        // The first of equals, as others do.
        let best = all().fold(None, |best: Option<(f32, u32)>, next| match best {
            Some(best) if best.0 >= next.0 => Some(best),
            _ => Some(next),
        })?;
        let heat = self.choice.temperature;
        if heat <= 0.0 {
            return Some(best.1);
        }
        let mut shares: Vec<(f32, u32)> = all()
            .map(|(logit, token)| (((logit - best.0) / heat).exp(), token))
            .collect();
        shares.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        if self.choice.top_k > 0 {
            shares.truncate(self.choice.top_k);
        }
        // Shares of the likeliest, which has 1.
        let least = self.choice.min_p;
        shares.truncate(shares.partition_point(|(share, _)| *share >= least).max(1));
        let sum: f32 = shares.iter().map(|(share, _)| share).sum();
        let mut kept = 0.0;
        let upto = shares.iter().position(|(share, _)| {
            kept += share;
            kept >= self.choice.top_p * sum
        });
        shares.truncate(upto.map_or(shares.len(), |at| at + 1));
        let sum: f32 = shares.iter().map(|(share, _)| share).sum();
        let mut left = self.random.f32() * sum;
        let chosen = shares.iter().find(|(share, _)| {
            left -= share;
            left < 0.0
        });
        chosen.or(shares.last()).map(|(_, token)| *token)
    }
}
