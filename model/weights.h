// The weights of a model whose ranks do not all have, or do not all update, all of them. Up to ZeRO stage 2
// every rank has the arena, and owners send their ranges to everybody after an update, while the next step
// begins; with stage 3 a rank has its own ranges, and a unit is gathered when the model comes to it, the one
// after it while the model is at it.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/comm.h"
#include "model/memory_plan.h"
#include "model/sharding.h"
#include "model/transformer.h"

class Weights final : public WeightSource {
public:
    // arena: the model's, absent with stage 3.
    Weights(Comm& comm, const ParamTable& table, const ModelConfig& config, const Sharding& sharding,
            DType dtype, Tensor arena);
    ~Weights() override;
    static void plan(MemoryPlan& plan, const ParamTable& table, const ModelConfig& config,
                     const Sharding& sharding, DType dtype, int rank);

    ArenaPart own() const;  // what the rank updates
    // The optimizer has been given an update, or has loaded other weights. Of all ranks at once.
    void changed();
    // Until what changed() began has arrived: before anybody but the model looks at the arena.
    void settle();
    Tensor weights(int64_t unit, int64_t then) override;

private:
    struct Place {
        Buffer memory;
        int64_t unit = -1;  // that is there, or on its way
        std::unique_ptr<Pending> gather;
    };
    Place& place_of(int64_t unit) { return in_places_[static_cast<size_t>(places_.of(unit))]; }
    void fetch(int64_t unit);

    Comm& comm_;
    const ParamTable& table_;
    const Sharding& sharding_;
    const DType dtype_;
    const Tensor arena_;
    const UnitPlaces places_;
    Buffer own_;                                       // stage 3
    std::array<Place, UnitPlaces::kCount> in_places_;  // likewise
    std::vector<std::unique_ptr<Pending>> arriving_;   // stage 1 and 2: of each unit
};
