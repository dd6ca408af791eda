// What of scripts/launch/ is read rather than run: the recipes' figures are those of build/plan, their flags
// and the manifest's are build/train's, the manifest is an MPIJob of v2beta1 and fits its image.
#include <cmath>
#include <map>
#include <regex>

#include "core/error.h"
#include "model/config.h"
#include "model/hf.h"
#include "tests/run_program.h"

namespace {

constexpr const char* kRecipes[] = {"gpt2_124m", "gpt2_1558m", "llama_8b"};

std::string recipe(const std::string& name) { return "scripts/launch/" + name + ".sh"; }

std::vector<std::string> words_of(const std::string& text) {
    const std::regex word("\\S+");
    std::vector<std::string> words;
    for (std::sregex_iterator at(text.begin(), text.end(), word), end; at != end; ++at)
        words.push_back(at->str());
    return words;
}
// The groups of every match.
std::vector<std::smatch> matches(const std::string& text, const std::regex& pattern) {
    return {std::sregex_iterator(text.begin(), text.end(), pattern), {}};
}
std::vector<std::smatch> matches(std::string&&, const std::regex&) = delete;  // they point into the text
std::string flag_of(const std::vector<std::string>& words, const std::string& flag) {
    for (size_t i = 0; i + 1 < words.size(); ++i)
        if (words[i] == flag) return words[i + 1];
    return "";
}
void expect_near(double actual, double expected, double share, const std::string& what) {
    EXPECT_NEAR(actual, expected, share * std::fabs(expected)) << what;
}

// ---- YAML as manifests need it: maps and lists by indentation, scalars of one line
// ----------------------------

struct Line {
    size_t indent;
    std::string text;
};
using Leaves = std::map<std::string, std::string>;  // "spec.containers[0].name" -> as it is written

void read_block(std::vector<Line>& lines, size_t& at, const std::string& path, Leaves& leaves) {
    const size_t indent = lines[at].indent;
    const auto inside = [&](bool list) {
        return at < lines.size() && lines[at].indent == indent && (lines[at].text[0] == '-') == list &&
               !lines[at].text.starts_with("--");
    };
    const auto starts_map = [](const std::string& text) {
        return text.find(": ") != std::string::npos || text.ends_with(":");
    };
    if (lines[at].text.starts_with("- ")) {
        for (int64_t item = 0; inside(true); ++item) {
            const std::string element = cat({path, "[", item, "]"});
            lines[at] = {indent + 2, lines[at].text.substr(2)};
            if (starts_map(lines[at].text)) {
                read_block(lines, at, element, leaves);
            } else {
                leaves[element] = lines[at++].text;
            }
        }
        return;
    }
    while (inside(false)) {
        const std::string text = lines[at++].text, key = text.substr(0, text.find(':'));
        const std::string below = path.empty() ? key : path + "." + key;
        if (!text.ends_with(":")) {
            leaves[below] = text.substr(key.size() + 2);
        } else if (at < lines.size() && (lines[at].indent > indent || inside(true))) {
            read_block(lines, at, below, leaves);
        }
    }
}
Leaves read_yaml(const std::string& text) {
    std::vector<Line> lines;
    for (const std::smatch& line : matches(text, std::regex("( *)([^ \n#][^\n]*)(?:\n|$)|[^\n]*\n")))
        if (line[2].matched) lines.push_back({static_cast<size_t>(line[1].length()), line[2]});
    Leaves leaves;
    size_t at = 0;
    while (at < lines.size()) {
        const size_t before = at;
        read_block(lines, at, "", leaves);
        if (at == before) return {};  // not what this reads
    }
    return leaves;
}

// ---- what the MPI Operator takes (its types of v2beta1, and what it refuses beyond them)
// ------------------------

std::vector<std::string> complaints(const Leaves& job) {
    const std::string replica = "spec\\.mpiReplicaSpecs\\.(Launcher|Worker)\\.";
    const std::string pod = replica + "template\\.spec\\.", container = pod + "containers\\[0\\]\\.";
    const std::vector<std::pair<std::string, std::string>> known = {
        {"apiVersion", "kubeflow\\.org/v2beta1"},
        {"kind", "MPIJob"},
        {"metadata\\.name", "[a-z]([-a-z0-9]*[a-z0-9])?"},
        {"metadata\\.labels\\..+", "[a-z0-9A-Z]([-_.a-z0-9A-Z]*[a-z0-9A-Z])?"},
        {"spec\\.slotsPerWorker", "[0-9]+"},
        {"spec\\.runLauncherAsWorker", "true|false"},
        {"spec\\.sshAuthMountPath", "/.+"},
        {"spec\\.launcherCreationPolicy", "AtStartup|WaitForWorkersReady"},
        {"spec\\.mpiImplementation", "OpenMPI|MPICH|Intel"},
        {"spec\\.runPolicy\\.(backoffLimit|activeDeadlineSeconds|ttlSecondsAfterFinished)", "[0-9]+"},
        {"spec\\.runPolicy\\.cleanPodPolicy", "None|Running|All"},
        {"spec\\.runPolicy\\.suspend", "true|false"},
        {"spec\\.mpiReplicaSpecs\\.Launcher\\.replicas", "1"},
        {"spec\\.mpiReplicaSpecs\\.Worker\\.replicas", "[1-9][0-9]*"},
        {replica + "restartPolicy", "Never|OnFailure"},
        {pod + "terminationGracePeriodSeconds", "[0-9]+"},
        {pod + "securityContext\\.(fsGroup|runAsUser)", "[0-9]+"},
        {pod + "volumes\\[[0-9]+\\]\\.name", "[a-z-]+"},
        {pod + "volumes\\[[0-9]+\\]\\.persistentVolumeClaim\\.claimName", "[a-z-]+"},
        {container + "(name|image)", "[a-z].*"},
        {container + "securityContext\\.runAsUser", "[0-9]+"},
        {container + "resources\\.(requests|limits)\\.(cpu|memory|nvidia\\.com/gpu)",
         "\"[0-9]+\"|[0-9]+[MG]i"},
        {container + "volumeMounts\\[[0-9]+\\]\\.(name|mountPath)", "[a-z/-]+"},
        // Strings: a number must be in quotes.
        {container + "(command|args)\\[[0-9]+\\]", "\"[^\"]*\"|[^\"0-9{\\[&*!|>'%@`].*"},
        {container + "env\\[[0-9]+\\]\\.(name|value)", "\"[^\"]*\"|[^\"0-9{\\[&*!|>'%@`].*"},
        {container + "lifecycle\\.preStop\\.exec\\.command\\[[0-9]+\\]",
         "\"[^\"]*\"|[^\"0-9{\\[&*!|>'%@`].*"},
    };
    std::vector<std::string> found;
    for (const auto& [path, value] : job) {
        bool is_known = false;
        for (const auto& [pattern, values] : known) {
            if (!std::regex_match(path, std::regex(pattern))) continue;
            is_known = true;
            if (!std::regex_match(value, std::regex(values))) found.push_back(path + " is " + value);
        }
        if (!is_known) found.push_back(path + " is no field of it");
    }
    for (const char* required :
         {"apiVersion", "kind", "metadata.name", "spec.mpiReplicaSpecs.Launcher.replicas",
          "spec.mpiReplicaSpecs.Launcher.template.spec.containers[0].image",
          "spec.mpiReplicaSpecs.Worker.replicas",
          "spec.mpiReplicaSpecs.Worker.template.spec.containers[0].image",
          "spec.mpiReplicaSpecs.Worker.template.spec.containers[0].command[0]"})
        if (!job.contains(required)) found.push_back(std::string(required) + " is missing");
    return found;
}
std::string joined(const std::vector<std::string>& lines) {
    std::string text;
    for (const std::string& line : lines) text += line + "\n";
    return text;
}

const std::string kManifest = "scripts/launch/mpijob.yaml";

}  // namespace

TEST(LaunchFiles, FiguresOfRecipesFollowFromThePlan) {
    for (const char* name : kRecipes) {
        SCOPED_TRACE(name);
        const std::string text = read_file(recipe(name));
        const std::vector<std::string> words = words_of(text);
        const double steps = std::stod(flag_of(words, "--steps")),
                     batch = std::stod(flag_of(words, "--batch-tokens"));
        const std::string model = flag_of(words, "--init");
        const ModelConfig config = find_model(model).config;

        const auto tokens =
            matches(text, std::regex("tokens: (\\S+) steps x (\\S+) = (\\S+), (\\S+) a parameter"));
        ASSERT_EQ(tokens.size(), 1u);
        EXPECT_EQ(std::stod(tokens[0][1]), steps);
        EXPECT_EQ(std::stod(tokens[0][2]), batch);
        expect_near(std::stod(tokens[0][3]), steps * batch, 0.005, "tokens");
        expect_near(std::stod(tokens[0][4]), steps * batch / double(ParamTable(config).num_params()), 0.03,
                    "a parameter");

        const auto flops = matches(text, std::regex("FLOPs: (\\S+) a token x (\\S+) = (\\S+) "));
        ASSERT_EQ(flops.size(), 1u);
        const double per_token = flops_per_token(config, std::stoll(flag_of(words, "--seq-len")));
        expect_near(std::stod(flops[0][1]), per_token, 0.005, "FLOPs a token");
        EXPECT_EQ(flops[0][2], tokens[0][3]);
        expect_near(std::stod(flops[0][3]), per_token * steps * batch, 0.005, "FLOPs");

        const auto plans = matches(
            text,
            std::regex("#   build/plan (.*)\n#   -> (\\S+) GiB, (\\S+)k tokens/s a GPU, MFU (\\S+) %: (\\S+) "
                       "hours, (\\S+) USD at (\\S+) a GPU-hour\n"));
        EXPECT_EQ(plans.size(), 2u);
        for (const std::smatch& plan : plans) {
            SCOPED_TRACE(plan[1]);
            const std::vector<std::string> flags = words_of(plan[1]);
            EXPECT_EQ(flag_of(flags, "--model"), model);
            EXPECT_EQ(std::stod(flag_of(flags, "--batch-tokens")), batch);
            for (const char* flag : {"--micro-batch", "--seq-len"})
                EXPECT_EQ(flag_of(flags, flag), flag_of(words, flag));
            const Outcome outcome = run_program("plan", flags);
            ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
            const auto said = matches(
                outcome.out, std::regex("it fits: (\\S+) of .*\n|tokens/s, (\\S+)k a GPU, MFU (\\S+) %"));
            ASSERT_EQ(said.size(), 2u) << outcome.out;
            expect_near(std::stod(plan[2]), std::stod(said[0][1]), 0.02, "GiB");
            expect_near(std::stod(plan[3]), std::stod(said[1][2]), 0.02, "tokens/s");
            expect_near(std::stod(plan[4]), std::stod(said[1][3]), 0.02, "MFU");
            const double gpus = std::stod(flag_of(flags, "--gpus"));
            const double hours = steps * batch / (gpus * 1e3 * std::stod(plan[3])) / 3600;
            expect_near(std::stod(plan[5]), hours, 0.01, "hours");
            expect_near(std::stod(plan[6]), hours * gpus * std::stod(plan[7]), 0.02, "USD");
        }
    }
}

// The shards are looked for when the flags have been read.
TEST(LaunchFiles, FlagsOfRecipesAreTrains) {
    for (const std::string name : kRecipes) {
        const auto run = [&](const std::vector<std::string>& more) {
            std::vector<std::string> words = {"TRAIN=" + program_path("train"), recipe(name)};
            words.insert(words.end(), more.begin(), more.end());
            return run_program("/usr/bin/env", words);
        };
        expect_refusal(run({"/nowhere/train_*.bin", "/nowhere/val_*.bin", "/nowhere/run", "--seed", "7"}),
                       {"/nowhere/train_*.bin"}, name);
        expect_refusal(run({"/nowhere/train_*.bin", "/nowhere/val_*.bin", "/nowhere/run", "--sead", "7"}),
                       {"--sead"}, name);
        expect_refusal(run({"one"}), {"error: " + name + ": ", "got 1", "hint: "}, name);
    }
}

TEST(LaunchFiles, TheManifestIsAnMpiJob) {
    const std::string text = read_file(kManifest);
    const Leaves job = read_yaml(text);
    EXPECT_EQ(complaints(job), std::vector<std::string>()) << joined(complaints(job));
    EXPECT_TRUE(job.contains("metadata.labels.kueue.x-k8s.io/queue-name"));
    // What the check must see.
    for (const auto& [right, wrong] : std::vector<std::pair<std::string, std::string>>{
             {"kubeflow.org/v2beta1", "kubeflow.org/v2beta2"},
             {"kind: MPIJob", "kind: MpiJob"},
             {"slotsPerWorker: 1", "slotsPerWorker: one"},
             {"backoffLimit: 20", "backOffLimit: 20"},
             {"restartPolicy: OnFailure", "restartPolicy: ExitCode"},
             {"value: \"600\"", "value: 600"},
             {"    Worker:", "    Workers:"},
             {"          containers:\n          - name: worker",
              "          containers:\n            name: worker"},
             {"cleanPodPolicy: Running", "cleanPodPolicy: Always"},
             {"  labels:", "  label:"}}) {
        const size_t at = text.find(right);
        ASSERT_NE(at, std::string::npos) << right;
        EXPECT_FALSE(complaints(read_yaml(std::string(text).replace(at, right.size(), wrong))).empty())
            << wrong;
    }
}

TEST(LaunchFiles, TheManifestFitsItsImageAndTheTrainer) {
    const std::string manifest = read_file(kManifest);
    const Leaves job = read_yaml(manifest);
    const std::string image = read_file("scripts/launch/Dockerfile");
    const std::string launcher = "spec.mpiReplicaSpecs.Launcher.template.spec.containers[0].";
    const std::string worker = "spec.mpiReplicaSpecs.Worker.template.spec.containers[0].";
    const auto in_image = [&](const std::string& words) {
        EXPECT_NE(image.find(words), std::string::npos) << "not in the Dockerfile: " << words;
    };
    EXPECT_EQ(job.at(launcher + "image"), job.at(worker + "image"));
    in_image("-t " + job.at(launcher + "image") + " .");
    for (const std::string& container : {launcher, worker})
        in_image("--uid " + job.at(container + "securityContext.runAsUser") + " ");
    in_image("HostKey " + job.at("spec.sshAuthMountPath") + "/id_rsa");
    in_image(job.at(worker + "args[2]"));  // sshd's configuration
    EXPECT_EQ(job.at(launcher + "command[0]"), "/opt/ingot/scripts/launch/mpirun.sh");
    in_image("COPY scripts/launch /opt/ingot/scripts/launch");
    in_image(" openssh-server ");
    in_image(" procps ");  // pkill of the worker's end

    std::vector<std::string> flags;
    for (int64_t i = 0; job.contains(cat({launcher, "args[", i, "]"})); ++i) {
        std::string word = job.at(cat({launcher, "args[", i, "]"}));
        std::erase(word, '"');
        flags.push_back(word);
    }
    expect_refusal(run_program("train", flags), {"/data/shards/train_*.bin"}, "flags of the manifest");
    for (const std::smatch& variable : matches(manifest, std::regex("- name: ([A-Z_]+)\n")))
        EXPECT_NE(read_file("scripts/launch/mpirun.sh").find("${" + variable.str(1) + ":-"),
                  std::string::npos)
            << "not a variable of mpirun.sh: " << variable.str(1);
}

TEST(LaunchFiles, ScriptsParse) {
    for (const std::string& name : list_directory("scripts/launch")) {
        const std::string file = "scripts/launch/" + name;
        if (!name.ends_with(".sh") && !name.ends_with(".sbatch")) continue;
        EXPECT_TRUE(read_file(file).starts_with("#!/bin/bash\n# ")) << file;
        const Outcome outcome = run_program("/bin/bash", {"-n", file});
        EXPECT_EQ(outcome.exit_code, 0) << file << ": " << outcome.err;
    }
}
