// Ends a job of several ranks when one of them has died or hangs, with one line that names it, its host, its
// step and what it was at; MPI alone would wait for ever. A thread of each rank tells rank 0 where its rank
// is, by TCP, at least once a second, and rank 0 answers. A process that is stopped, a host that is gone and
// a network that is cut fall silent; one that has died closes its connection; one that hangs keeps the others
// waiting, many times longer than a step has ever taken.
#pragma once
#include <cstdint>
#include <memory>

#include "core/comm.h"

// What a rank is at. Those from data to update are the parts of a step; whoever is at something else takes
// the time it needs.
enum class Phase : uint8_t { start, data, agreement, compute, gradients, update, evaluate, checkpoint, end };

class Watchdog {
public:
    // Of all ranks at once. Nothing is watched with one rank, or with a limit of 0. InputError when rank 0
    // cannot be reached by TCP.
    Watchdog(Comm& comm, double limit_s);
    ~Watchdog();  // the rank leaves in peace
    void enter(Phase phase, int64_t step);

private:
    struct State;
    std::unique_ptr<State> state_;
};
