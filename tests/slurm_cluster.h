// A Slurm of two nodes for a test, both this machine: munged, slurmctld and two slurmd of its packages in a
// directory of their own, on free ports, with the partition `low`, whose jobs must go when `high` wants their
// nodes. Needs root.
#pragma once
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "core/error.h"
#include "core/log.h"
#include "core/rng.h"
#include "tests/run_program.h"

class SlurmCluster {
public:
    // Why there can be none here; "" when there can.
    static std::string missing() {
        if (geteuid() != 0) return "slurmd needs root";
        for (const char* program : {"munged", "slurmctld", "slurmd"})
            if (!path_exists(sbin(program))) return "no " + sbin(program) + " (scripts/deps.sh test)";
        if (!path_exists("/usr/bin/sbatch")) return "no /usr/bin/sbatch (scripts/deps.sh test)";
        return "";
    }

    explicit SlurmCluster(const std::string& directory) : root_(directory) {
        for (const char* name : {"/munge", "/state", "/spool.n1", "/spool.n2", "/tmp.n1", "/tmp.n2"})
            make_directories(root_ + name);
        std::filesystem::permissions(root_ + "/munge", std::filesystem::perms::owner_all);
        std::string key;
        for (uint64_t i = 0; i < 128; ++i)
            key += static_cast<char>(random_below({.seed = static_cast<uint64_t>(getpid())}, i, 256));
        write_file_atomic(root_ + "/munge/key", key);
        std::filesystem::permissions(root_ + "/munge/key", std::filesystem::perms::owner_read);
        write_file_atomic(root_ + "/slurm.conf", configuration());
        start("munged", {"munged", "--foreground", "--force", "--key-file=" + root_ + "/munge/key",
                         "--socket=" + root_ + "/munge.socket", "--pid-file=" + root_ + "/munge/pid",
                         "--log-file=" + root_ + "/munge/log", "--seed-file=" + root_ + "/munge/seed"});
        if (!wait_until(10, [&] { return path_exists(root_ + "/munge.socket"); })) return;
        start("slurmctld", {"slurmctld", "-D"});
        for (const char* node : {"n1", "n2"}) start(node, {"slurmd", "-D", "-N", node});
        started_ = wait_until(30, [&] {
            return command({"sinfo", "-h", "-p", "low", "-o", "%T %D"}).out == "idle 2\n";
        });
    }
    ~SlurmCluster() {
        if (started_) {
            command({"scancel", "--user", "root"});
            wait_until(40, [&] { return command({"squeue", "-h"}).out.empty(); });
        }
        for (auto pid = daemons_.rbegin(); pid != daemons_.rend(); ++pid) {
            kill(*pid, SIGTERM);
            waitpid(*pid, nullptr, 0);
        }
    }
    SlurmCluster(const SlurmCluster&) = delete;

    bool started() const { return started_; }
    std::string log() const {
        std::string text;
        for (const char* name : {"munged", "slurmctld", "n1", "n2"})
            if (path_exists(root_ + "/" + name + ".log")) text += read_file(root_ + "/" + name + ".log");
        return text;
    }
    // One of Slurm's commands, or any with variables before it as /usr/bin/env takes them.
    Outcome command(std::vector<std::string> words) const {
        words.insert(words.begin(), "SLURM_CONF=" + root_ + "/slurm.conf");
        return run_program("/usr/bin/env", words);
    }
    // As `scontrol show job` has it: JobState, Restarts, ExitCode.
    std::string field(const std::string& job, const std::string& name) const {
        const std::string text = " " + command({"scontrol", "-o", "show", "job", job}).out;
        const size_t at = text.find(" " + name + "=");
        if (at == std::string::npos) return "";
        const size_t begin = at + name.size() + 2;
        return text.substr(begin, text.find(' ', begin) - begin);
    }
    template <typename Condition>
    static bool wait_until(double limit_s, const Condition& condition) {
        const double end = seconds_now() + limit_s * kTimeFactor;
        while (!condition()) {
            if (seconds_now() > end) return false;
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
        }
        return true;
    }

private:
    static std::string sbin(const std::string& program) { return "/usr/sbin/" + program; }

    std::string configuration() const {
        char host[256] = {};
        gethostname(host, sizeof host - 1);
        std::vector<std::pair<std::string, std::string>> words = {
            {"@ROOT", root_}, {"@HOST", std::string(host).substr(0, std::string(host).find('.'))}};
        std::vector<int> listeners;  // all open at once: three different ports
        for (const char* word : {"@PORT0", "@PORT1", "@PORT2"}) {
            listeners.push_back(listener());
            sockaddr_in address{};
            socklen_t size = sizeof address;
            getsockname(listeners.back(), reinterpret_cast<sockaddr*>(&address), &size);
            words.emplace_back(word, std::to_string(ntohs(address.sin_port)));
        }
        for (const int fd : listeners) close(fd);
        // A job that is queued again waits for as long as a credential lasts: 5 s is the least. PMIx of both
        // nodes must not meet in one /tmp.
        std::string text = R"(ClusterName=ingot
SlurmctldHost=@HOST(127.0.0.1)
SlurmctldPort=@PORT0
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=@ROOT/munge.socket,cred_expire=5
StateSaveLocation=@ROOT/state
SlurmdSpoolDir=@ROOT/spool.%n
TmpFS=@ROOT/tmp.%n
SlurmctldPidFile=@ROOT/slurmctld.pid
SlurmdPidFile=@ROOT/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=n1 NodeHostname=@HOST NodeAddr=127.0.0.1 Port=@PORT1 CPUs=1
NodeName=n2 NodeHostname=@HOST NodeAddr=127.0.0.1 Port=@PORT2 CPUs=1
PartitionName=low Nodes=n[1-2] Default=YES PriorityTier=1 GraceTime=30
PartitionName=high Nodes=n[1-2] PriorityTier=2 PreemptMode=OFF
)";
        for (const auto& [word, value] : words)
            for (size_t at = text.find(word); at != std::string::npos;
                 at = text.find(word, at + value.size()))
                text.replace(at, word.size(), value);
        return text;
    }
    static int listener() {
        const int fd = socket(AF_INET, SOCK_STREAM, 0);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address);
        return fd;
    }
    void start(const std::string& name, const std::vector<std::string>& words) {
        const std::string program = sbin(words[0]), log = root_ + "/" + name + ".log";
        write_file_atomic(log, "");
        std::vector<char*> argv;
        for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
        argv.push_back(nullptr);
        std::string path = "PATH=/usr/sbin:/usr/bin:/bin", conf = "SLURM_CONF=" + root_ + "/slurm.conf";
        char* environment[] = {path.data(), conf.data(), nullptr};
        const pid_t pid = fork();
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGTERM);  // a test that crashes leaves no daemons
            dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
            dup2(open(log.c_str(), O_WRONLY | O_APPEND), STDOUT_FILENO);
            dup2(STDOUT_FILENO, STDERR_FILENO);
            execve(program.c_str(), argv.data(), environment);
            _exit(127);
        }
        if (pid > 0) daemons_.push_back(pid);
    }

    std::string root_;
    std::vector<pid_t> daemons_;
    bool started_ = false;
};
