// Reads what a run wrote about itself and lays it out: verdict, curves, samples, configuration, files.
#include "eval/report.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "core/io.h"
#include "core/log.h"
#include "core/threads.h"
#include "eval/plot.h"

namespace {

using Json = nlohmann::json;

struct History {
    PlotSeries loss{"training", {}, {}, false}, val_loss{"held-out", {}, {}, true},
        val_bpb{"held-out", {}, {}, true};
    PlotSeries lr{"lr", {}, {}, false}, grad_norm{"norm", {}, {}, false}, speed{"tokens/s", {}, {}, false};
    std::vector<std::pair<int64_t, std::string>> samples;
    std::set<double> skipped;  // steps; a resumed run may have skipped one twice
    int64_t num_bad_lines = 0;
    Json last_step, last_eval, end;
};

double number_or_nan(const Json& line, const char* key) {
    const auto found = line.find(key);
    return found != line.end() && found->is_number() ? found->get<double>()
                                                     : std::numeric_limits<double>::quiet_NaN();
}

void add_point(PlotSeries& series, double x, double y) {
    // A resumed run repeats steps after its last checkpoint: the later line is the true one.
    while (!series.x.empty() && series.x.back() >= x) series.x.pop_back(), series.y.pop_back();
    series.x.push_back(x);
    series.y.push_back(y);
}

History read_history(const std::string& path) {
    History h;
    const std::string text = read_file(path);
    for (size_t begin = 0; begin < text.size();) {
        const size_t end = std::min(text.find('\n', begin), text.size());
        const Json line = Json::parse(text.substr(begin, end - begin), nullptr, false);
        begin = end + 1;
        if (!line.is_object() || !line.contains("kind") || !line["kind"].is_string()) {
            ++h.num_bad_lines;  // the last line of a killed run may be cut
            continue;
        }
        const std::string kind = line["kind"];
        const double step = number_or_nan(line, "step");
        if (kind == "step") {
            add_point(h.loss, step, number_or_nan(line, "loss"));
            add_point(h.lr, step, number_or_nan(line, "lr"));
            add_point(h.grad_norm, step, number_or_nan(line, "grad_norm"));
            add_point(h.speed, step, number_or_nan(line, "tokens_per_s"));
            if (line.contains("skipped")) h.skipped.insert(step);
            h.last_step = line;
        } else if (kind == "eval") {
            add_point(h.val_loss, step, number_or_nan(line, "val_loss"));
            add_point(h.val_bpb, step, number_or_nan(line, "val_bpb"));
            h.last_eval = line;
        } else if (kind == "sample" && line.contains("text") && line["text"].is_string()) {
            h.samples.emplace_back(static_cast<int64_t>(step), line["text"].get<std::string>());
        } else if (kind == "end") {
            h.end = line;
        }
    }
    return h;
}

double median(std::vector<double> values) {
    values.erase(std::remove_if(values.begin(), values.end(), [](double v) { return !std::isfinite(v); }),
                 values.end());
    if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
    std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size() / 2), values.end());
    return values[values.size() / 2];
}

std::string decimals(double value, int digits) {
    char text[64];
    std::snprintf(text, sizeof text, "%.*f", digits, value);
    return text;
}

struct ListedFile {
    std::string name, sha256, size;
};

// Files under `directory` (relative to root, "": root itself). Links to directories are named, not followed:
// they may lead in circles. A checkpoint has written its files' hashes down (trainer/hashes.json), which
// spares reading gigabytes again.
void list_files(const std::string& root, const std::string& directory,
                std::map<std::string, std::string>& known, std::vector<ListedFile>& files) {
    const std::string prefix = directory.empty() ? "" : directory + "/";
    const std::string hashes = root + "/" + prefix + "trainer/hashes.json";
    if (path_exists(hashes)) {
        Json records = Json::parse(read_file(hashes), nullptr, false);
        if (!records.is_object()) records = Json::object();
        for (const auto& [name, record] : records.items()) {
            if (!record.is_object() || !record.contains("sha256") || !record["sha256"].is_string()) continue;
            known[prefix + name] = record["sha256"];
        }
    }
    for (const std::string& name : list_directory(root + "/" + directory)) {
        const std::string relative = prefix + name, path = root + "/" + relative;
        std::error_code error;
        const bool is_link = std::filesystem::is_symlink(path, error);
        const bool is_file = std::filesystem::is_regular_file(path, error);
        if (is_directory(path) && !is_link) {
            list_files(root, relative, known, files);
        } else if (is_link && !is_file) {
            files.push_back({relative, "", "link to " + std::filesystem::read_symlink(path, error).string()});
        } else if (is_file && name != "report.html") {
            const auto found = known.find(relative);
            files.push_back({relative, found == known.end() ? "" : found->second,
                             human_bytes(static_cast<double>(file_bytes(path)))});
        }
    }
}

std::string files_table(const std::string& root) {
    std::map<std::string, std::string> known;
    std::vector<ListedFile> files;
    list_files(root, "", known, files);
    parallel_for(static_cast<int64_t>(files.size()), [&](int64_t i) {
        ListedFile& file = files[static_cast<size_t>(i)];
        if (file.sha256.empty() && !file.size.starts_with("link"))
            file.sha256 = sha256_file(root + "/" + file.name);
    });
    std::string rows = "<tr><td>file</td><td>sha256</td><td class=\"num\">size</td></tr>\n";
    for (const ListedFile& file : files) {
        rows += "<tr><td><code>" + html_escape(file.name) + "</code></td><td><code>" + file.sha256 +
                "</code></td><td class=\"num\">" + html_escape(file.size) + "</td></tr>\n";
    }
    return "<table>" + rows + "</table>\n";
}

constexpr const char* kStyle = R"(
:root{color-scheme:light dark;--ink:#1c1e21;--paper:#fff;--soft:#667;--rule:#d8dbe0;--s0:#2563eb;--s1:#d97706;--s2:#059669;--s3:#9333ea}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8ea;--paper:#15171a;--soft:#9aa;--rule:#363a40;--s0:#7aa7ff;--s1:#f5b342;--s2:#4fd1a5;--s3:#c08bff}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:800px;margin:0 auto;padding:1rem}
h1{font-size:1.5rem;margin:.2em 0}h2{font-size:1.1rem;margin:1.6em 0 .4em;border-bottom:1px solid var(--rule)}
table{border-collapse:collapse;width:100%}td{padding:.2em .6em .2em 0;border-bottom:1px solid var(--rule);vertical-align:top}
td.num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}code,pre{font:13px/1.45 ui-monospace,monospace;overflow-wrap:anywhere}
pre{white-space:pre-wrap;background:color-mix(in srgb,var(--ink) 6%,transparent);padding:.7em;border-radius:6px}
svg{width:100%;height:auto;display:block;margin:.6em 0}svg text{font:12px system-ui,sans-serif;fill:var(--ink)}svg .title{font-weight:600;font-size:14px}
svg .tick{fill:var(--soft);font-size:11px}.grid{stroke:var(--rule);stroke-width:1}.yardstick{stroke:var(--soft);stroke-dasharray:5 4}
polyline{fill:none;stroke-width:1.8}polyline.s0{stroke:var(--s0)}polyline.s1{stroke:var(--s1)}polyline.s2{stroke:var(--s2)}polyline.s3{stroke:var(--s3)}
circle.s0,svg text.s0{fill:var(--s0)}circle.s1,svg text.s1{fill:var(--s1)}circle.s2,svg text.s2{fill:var(--s2)}
.lead{color:var(--soft)}@media print{body{max-width:none}pre,svg{break-inside:avoid}}
)";

}  // namespace

void write_run_report(const std::string& run_directory, const std::vector<ReportFact>& facts) {
    const History h = read_history(run_directory + "/log.jsonl");
    std::string rows;
    const auto fact = [&](const std::string& name, const std::string& value) {
        rows +=
            "<tr><td>" + html_escape(name) + "</td><td class=\"num\">" + html_escape(value) + "</td></tr>\n";
    };
    std::vector<PlotLine> yardsticks;
    for (const ReportFact& f : facts) {
        fact(f.name, f.value);
        double value = 0;
        const char* const end = f.value.data() + f.value.size();
        if (f.yardstick && std::from_chars(f.value.data(), end, value).ec == std::errc{})
            yardsticks.push_back({f.name, value});
    }
    if (!h.last_eval.is_null()) {
        // Of the run's own windows and arithmetic; build/evaluate may judge by others.
        const double bpb = number_or_nan(h.last_eval, "val_bpb");
        if (std::isfinite(bpb)) fact("held-out bits per byte during training", decimals(bpb, 4));
        fact("held-out loss during training (nats per token)",
             decimals(number_or_nan(h.last_eval, "val_loss"), 6));
    }
    if (!h.last_step.is_null()) {
        fact("steps", short_number(number_or_nan(h.last_step, "step")));
        fact("tokens trained on", short_number(number_or_nan(h.last_step, "tokens")));
        fact("last training loss", decimals(number_or_nan(h.last_step, "loss"), 6));
        fact("median tokens per second", decimals(median(h.speed.y), 0));
        fact("steps skipped (non-finite or outlier)", std::to_string(h.skipped.size()));
    }
    if (!h.end.is_null()) {
        fact("memory: planned / peak resident", human_bytes(number_or_nan(h.end, "plan_bytes")) + " / " +
                                                    human_bytes(number_or_nan(h.end, "peak_rss_bytes")));
    }
    if (h.num_bad_lines > 0) fact("log lines that could not be read", std::to_string(h.num_bad_lines));

    std::string html =
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>Ingot run "
        "report</title><style>" +
        std::string(kStyle) + "</style></head><body>\n<h1>Training run</h1>\n<p class=\"lead\"><code>" +
        html_escape(run_directory) + "</code></p>\n<table>" + rows + "</table>\n<h2>Curves</h2>\n";
    html += svg_plot("Loss (nats per token)", "step", {h.loss, h.val_loss});
    if (std::any_of(h.val_bpb.y.begin(), h.val_bpb.y.end(), [](double v) { return std::isfinite(v); })) {
        html += svg_plot("Held-out bits per byte", "step", {h.val_bpb}, yardsticks);
    }
    html += svg_plot("Tokens per second", "step", {h.speed}) + svg_plot("Learning rate", "step", {h.lr}) +
            svg_plot("Gradient norm before clipping", "step", {h.grad_norm});
    if (!h.samples.empty()) html += "<h2>Samples</h2>\n";
    for (size_t i = h.samples.size(); i-- > 0;) {
        html += "<p class=\"lead\">step " + std::to_string(h.samples[i].first) + "</p><pre>" +
                html_escape(h.samples[i].second) + "</pre>\n";
    }
    if (path_exists(run_directory + "/config.toml")) {
        html += "<h2>Configuration</h2>\n<pre>" + html_escape(read_file(run_directory + "/config.toml")) +
                "</pre>\n";
    }
    html += "<h2>Files</h2>\n" + files_table(run_directory) + "</body></html>\n";
    write_file_atomic(run_directory + "/report.html", html);
}
