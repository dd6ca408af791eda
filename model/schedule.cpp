// The learning rate as a function of the step alone, so that a resumed run continues it exactly.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"
#include "model/optimizer.h"

double Schedule::at(int64_t step) const {
    if (step < warmup) return lr * static_cast<double>(step + 1) / static_cast<double>(warmup);
    const double decay_steps = static_cast<double>(num_steps - warmup);
    const double done =
        decay_steps > 0 ? std::min(1.0, static_cast<double>(step - warmup) / decay_steps) : 1.0;
    const double final_lr = lr * final_frac;
    if (name == "constant") return lr;
    if (name == "linear") return lr + (final_lr - lr) * done;
    if (name == "cosine") return final_lr + (lr - final_lr) * 0.5 * (1 + std::cos(std::numbers::pi * done));
    if (name == "wsd") {
        // Flat, then 1 - sqrt(x) over the last fifth of the run (Haegele et al. 2024).
        const double flat_end = std::max(0.8 * static_cast<double>(num_steps), static_cast<double>(warmup));
        if (static_cast<double>(step) < flat_end) return lr;
        const double rest = static_cast<double>(num_steps) - flat_end;
        const double x = rest > 0 ? (static_cast<double>(step) - flat_end) / rest : 1.0;
        return final_lr + (lr - final_lr) * (1 - std::sqrt(std::min(1.0, x)));
    }
    fail_input({.what = "unknown schedule",
                .expected = "cosine, linear, constant or wsd",
                .actual = name,
                .hint = "--schedule cosine"});
}
