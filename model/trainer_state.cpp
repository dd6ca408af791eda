// The trainer's state as JSON.
#include "model/trainer_state.h"

#include <cmath>
#include <limits>

#include "core/error.h"
#include "core/json.h"

namespace {

using nlohmann::json;

// Older ones are read too: 1 counts no consecutive skips, 2 knows of no rewinds.
constexpr int kStateVersion = 3;

// Finite doubles print in the shortest form that reads back to the same bits; JSON has no word for the
// others.
json from_double(double value) {
    if (std::isfinite(value)) return value;
    return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
}
double to_double(const json& value) {
    if (value.is_number()) return value.get<double>();
    const std::string word = value.get<std::string>();
    const double infinity = std::numeric_limits<double>::infinity();
    return word == "inf" ? infinity : word == "-inf" ? -infinity : std::numeric_limits<double>::quiet_NaN();
}
json from_doubles(const std::vector<double>& values) {
    json list = json::array();
    for (const double value : values) list.push_back(from_double(value));
    return list;
}
std::vector<double> to_doubles(const json& list) {
    std::vector<double> values;
    for (const json& value : list) values.push_back(to_double(value));
    return values;
}

}  // namespace

std::string state_to_json(const TrainerState& state, DType dtype) {
    json j = json::object();
    j["version"] = kStateVersion;
    j["dtype"] = dtype_name(dtype);
    j["step"] = state.step;
    j["next_sample"] = state.next_sample;
    j["tokens"] = state.tokens;
    j["num_updates"] = state.num_updates;
    j["num_skipped"] = state.num_skipped;
    j["skips_in_a_row"] = state.skips_in_a_row;
    j["loss_window"] = from_doubles(state.loss_window);
    j["norm_window"] = from_doubles(state.norm_window);
    j["refused_since"] = state.refused_since;
    j["stepped_over"] = json::array();
    for (const SampleRange& range : state.stepped_over) j["stepped_over"].push_back({range.begin, range.end});
    j["last_loss"] = from_double(state.last_loss);
    j["seed"] = state.seed;
    j["config_toml"] = state.config_toml;
    j["data_hash"] = state.data_hash;
    j["commit"] = state.commit;
    return j.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
}

TrainerState state_from_json(const std::string& text, const std::string& where, DType& dtype) {
    TrainerState state;
    const JsonSource source{.what = "malformed trainer state",
                            .where = where,
                            .hint = "remove this checkpoint; the one before it will be resumed from"};
    const json j = parse_json<json>(text, source);
    read_json(source, [&] {
        const int version = j.at("version").get<int>();
        if (version < 1 || version > kStateVersion)
            fail_input({"trainer state is of another version", where, cat({"1 to ", kStateVersion}),
                        cat({version}), "resume with the version of the program that wrote it"});
        dtype = j.at("dtype").get<std::string>() == dtype_name(DType::bf16) ? DType::bf16 : DType::f32;
        j.at("step").get_to(state.step);
        j.at("next_sample").get_to(state.next_sample);
        j.at("tokens").get_to(state.tokens);
        j.at("num_updates").get_to(state.num_updates);
        j.at("num_skipped").get_to(state.num_skipped);
        if (version > 1) j.at("skips_in_a_row").get_to(state.skips_in_a_row);
        state.loss_window = to_doubles(j.at("loss_window"));
        state.norm_window = to_doubles(j.at("norm_window"));
        if (version > 2) {
            j.at("refused_since").get_to(state.refused_since);
            for (const json& range : j.at("stepped_over"))
                state.stepped_over.push_back({range.at(0).get<int64_t>(), range.at(1).get<int64_t>()});
        }
        state.last_loss = to_double(j.at("last_loss"));
        j.at("seed").get_to(state.seed);
        j.at("config_toml").get_to(state.config_toml);
        j.at("data_hash").get_to(state.data_hash);
        j.at("commit").get_to(state.commit);
    });
    return state;
}

bool TrainerState::step_over() {
    const int64_t before = next_sample;
    for (bool moved = true; moved;) {
        moved = false;
        for (const SampleRange& range : stepped_over) {
            if (next_sample < range.begin || next_sample >= range.end) continue;
            next_sample = range.end;
            moved = true;
        }
    }
    return next_sample != before;
}

void restore_counts(Optimizer& optimizer, const TrainerState& state) {
    optimizer.set_num_updates(state.num_updates);
    optimizer.set_num_skipped(state.num_skipped);
    optimizer.set_skips_in_a_row(state.skips_in_a_row);
    optimizer.loss_window().restore(state.loss_window);
    optimizer.norm_window().restore(state.norm_window);
}
