// Two hosts on one machine: network namespaces with a cable between them, and a name each. Needs root.
#pragma once
#include "core/error.h"
#include "tests/run_program.h"

class TwoHosts {
public:
    // Into `directory` goes what stands for ssh.
    explicit TwoHosts(const std::string& directory) : rsh_(directory + "/rsh.sh") {
        if (geteuid() != 0) {
            missing_ = "network namespaces need root";
            return;
        }
        if (!path_exists(kIp)) {
            missing_ = std::string("no ") + kIp + " (package iproute2)";
            return;
        }
        const std::string a = name(0), b = name(1);
        for (const std::vector<std::string>& words : std::vector<std::vector<std::string>>{
                 {"netns", "add", a},
                 {"netns", "add", b},
                 {"link", "add", "cable", "netns", a, "type", "veth", "peer", "name", "cable", "netns", b},
                 {"-n", a, "addr", "add", address(0) + "/24", "dev", "cable"},
                 {"-n", b, "addr", "add", address(1) + "/24", "dev", "cable"},
                 {"-n", a, "link", "set", "lo", "up"},
                 {"-n", b, "link", "set", "lo", "up"},
                 {"-n", a, "link", "set", "cable", "up"},
                 {"-n", b, "link", "set", "cable", "up"},
                 {"netns", "exec", b, "unshare", "--uts", "hostname", b}}) {
            const Outcome outcome = run_program(kIp, words);
            if (outcome.exit_code == 0) continue;
            missing_ = "this machine allows no network namespaces: ip " + words[0] + " ...: " + outcome.err;
            return;
        }
        std::string script =
            "#!/bin/sh\n# RSH HOST COMMAND\nexport ASAN_OPTIONS=detect_leaks=0\ncase $1 in\n";
        for (const int host : {0, 1}) script += address(host) + ") host=" + name(host) + " ;;\n";
        script +=
            "*) echo \"no route to $1\" >&2; exit 255 ;;\nesac\nshift\n"
            "exec /usr/sbin/ip netns exec $host unshare --uts sh -c \"hostname $host; $*\"\n";
        write_file_atomic(rsh_, script);
        std::filesystem::permissions(rsh_, std::filesystem::perms::owner_all);
    }
    ~TwoHosts() {
        if (geteuid() != 0 || !path_exists(kIp)) return;
        for (const int host : {0, 1}) {
            const Outcome pids = run_program(kIp, {"netns", "pids", name(host)});
            for (size_t at = 0; at < pids.out.size(); at = pids.out.find('\n', at) + 1)
                kill(std::stoi(pids.out.substr(at)), SIGKILL);
            run_program(kIp, {"netns", "del", name(host)});
        }
    }
    TwoHosts(const TwoHosts&) = delete;

    const std::string& missing() const { return missing_; }  // why there are none; "" when there are
    const std::string& rsh() const { return rsh_; }
    static std::string name(int host) { return cat({"ingot-", getpid(), "-", host}); }
    static std::string address(int host) { return cat({"10.77.0.", host + 1}); }
    // /usr/sbin/ip and these words run what follows on a host.
    static std::vector<std::string> on(int host) {
        return {"netns",   "exec", name(host), "unshare",
                "--uts",   "sh",   "-c",       "hostname \"$0\" && exec \"$@\"",
                name(host)};
    }
    static void set_cable(const char* up_or_down) {
        const Outcome outcome = run_program(kIp, {"-n", name(1), "link", "set", "cable", up_or_down});
        EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    }
    static constexpr const char* kIp = "/usr/sbin/ip";

private:
    std::string missing_, rsh_;
};
