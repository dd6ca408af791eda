// Gathering, of everything after an update or of one unit after another.
#include "model/weights.h"

#include <algorithm>

#include "core/device.h"
#include "core/error.h"

void Weights::plan(MemoryPlan& plan, const ParamTable& table, const ModelConfig& config,
                   const Sharding& sharding, DType dtype, int rank) {
    if (sharding.stage() < 3) return;
    plan.add(cat({"own parameters (", dtype_name(dtype), ")"}), sharding.own_size(rank) * dtype_bytes(dtype));
    plan.add("gathered parameters", UnitPlaces(table, config.tied_head).size() * dtype_bytes(dtype));
}

Weights::Weights(Comm& comm, const ParamTable& table, const ModelConfig& config, const Sharding& sharding,
                 DType dtype, Tensor arena)
    : comm_(comm),
      table_(table),
      sharding_(sharding),
      dtype_(dtype),
      arena_(arena),
      places_(table, config.tied_head),
      arriving_(static_cast<size_t>(table.num_units())) {
    CHECK(arena.absent() == (sharding.stage() == 3), cat({"stage ", sharding.stage()}));
    if (sharding.stage() < 3) return;
    own_ = Buffer(sharding.own_size(comm.rank()) * dtype_bytes(dtype));
    for (int i = 0; i < UnitPlaces::kCount; ++i)
        in_places_[static_cast<size_t>(i)].memory = Buffer(places_.sizes[i] * dtype_bytes(dtype));
}

Weights::~Weights() = default;

ArenaPart Weights::own() const {
    return sharding_.held(sharding_.stage() == 3 ? own_.tensor(dtype_) : arena_, comm_.rank(), 3);
}

void Weights::changed() {
    settle();
    for (Place& place : in_places_) place.unit = -1;
    if (sharding_.stage() == 0 || sharding_.stage() == 3 || comm_.size() == 1) return;
    for (int64_t unit = 0; unit < table_.num_units(); ++unit) {
        arriving_[static_cast<size_t>(unit)] = comm_.start_all_gather(
            arena_.rows(table_.unit_begin(unit), table_.unit_size(unit)), sharding_.split(unit));
    }
}

void Weights::settle() {
    for (std::unique_ptr<Pending>& unit : arriving_)
        if (unit) std::exchange(unit, {})->wait();
    for (Place& place : in_places_)
        if (place.gather) std::exchange(place.gather, {})->wait();
}

void Weights::fetch(int64_t unit) {
    Place& place = place_of(unit);
    if (place.unit == unit) return;
    CHECK(!place.gather, cat({"unit ", place.unit, " was never asked for"}));
    place.unit = unit;
    const Tensor all = place.memory.tensor(dtype_).rows(0, table_.unit_size(unit));
    const ArenaSegment& own = sharding_.own(comm_.rank())[static_cast<size_t>(unit)];
    if (own.size > 0)
        copy_tensor(all.rows(sharding_.split(unit).begin(comm_.rank()), own.size),
                    own_.tensor(dtype_).rows(own.local, own.size));
    place.gather = comm_.start_all_gather(all, sharding_.split(unit));
}

Tensor Weights::weights(int64_t unit, int64_t then) {
    if (sharding_.stage() < 3) {
        if (std::unique_ptr<Pending>& here = arriving_[static_cast<size_t>(unit)])
            std::exchange(here, {})->wait();
        return arena_.rows(table_.unit_begin(unit), table_.unit_size(unit));
    }
    fetch(unit);
    Place& place = place_of(unit);
    if (place.gather) std::exchange(place.gather, {})->wait();
    if (then >= 0) fetch(then);
    return place.memory.tensor(dtype_).rows(0, table_.unit_size(unit));
}
