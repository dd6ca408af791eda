// Heartbeats. Rank 0 listens; the others connect while all ranks are in the constructor, so that a wrong
// network shows at once. Who finds a rank missing prints the line and ends its own process, which makes the
// launcher end the others.
#include "core/watchdog.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"
#include "core/log.h"

namespace {

constexpr int kLookMs = 100, kLooksABeat = 10, kConnectMs = 5000;
constexpr double kFactor = 10;  // a wait this many times longer than the longest step is no slow step
constexpr const char* kPhases[] = {"start",     "reading data", "agreement",  "forward and backward",
                                   "gradients", "update",       "evaluation", "checkpoint",
                                   "end"};

// What a rank says. Both sides run the same program on the same kind of machine.
struct Beat {
    int32_t rank = 0;
    Phase phase = Phase::start;
    bool leaves = false, ends_job = false;  // nothing comes behind either
    int64_t step = 0;
    int64_t waits = 0;                  // Comm::waits(), of which an odd one has not ended
    int32_t waits_for = Comm::kNobody;  // Comm::waits_for()
    bool operator==(const Beat&) const = default;
};

void send_at_once(int fd) {
    const int yes = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
}

bool send_all(int fd, const Beat& beat) {
    // A message fits any socket's buffer; a peer that does not read is silent, too.
    return send(fd, &beat, sizeof beat, MSG_NOSIGNAL | MSG_DONTWAIT) == static_cast<ssize_t>(sizeof beat);
}
// False when the connection is closed. Takes what has come; `beat` is the newest whole message, if any.
bool receive_all(int fd, std::string& unread, std::optional<Beat>& beat) {
    char bytes[4096];
    bool open = true;
    for (;;) {
        const ssize_t got = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
        if (got < 0 && errno == EINTR) continue;
        open = got > 0 || (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK));
        if (got <= 0) break;
        unread.append(bytes, static_cast<size_t>(got));
    }
    while (unread.size() >= sizeof(Beat)) {
        std::memcpy(&beat.emplace(), unread.data(), sizeof(Beat));
        unread.erase(0, sizeof(Beat));
        if (beat->leaves || beat->ends_job) break;
    }
    return open;
}

// This host's addresses, loopback first: it is the only one that a machine without a network has.
std::vector<std::string> own_addresses() {
    std::vector<std::string> addresses = {"127.0.0.1"};
    ifaddrs* list = nullptr;
    if (getifaddrs(&list) != 0) return addresses;
    for (const ifaddrs* i = list; i != nullptr; i = i->ifa_next) {
        if (i->ifa_addr == nullptr || i->ifa_addr->sa_family != AF_INET) continue;
        if ((i->ifa_flags & IFF_LOOPBACK) != 0 || (i->ifa_flags & IFF_UP) == 0) continue;
        char text[INET_ADDRSTRLEN] = {};
        const auto* address = reinterpret_cast<const sockaddr_in*>(i->ifa_addr);
        if (inet_ntop(AF_INET, &address->sin_addr, text, sizeof text) != nullptr)
            addresses.emplace_back(text);
    }
    freeifaddrs(list);
    return addresses;
}

int connect_to(const std::string& address, int port) {
    sockaddr_in to = {};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<uint16_t>(port));
    if (inet_pton(AF_INET, address.c_str(), &to.sin_addr) != 1) return -1;
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    if (connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0) return fd;
    pollfd ready = {fd, POLLOUT, 0};
    int error = 0;
    socklen_t length = sizeof error;
    if (errno == EINPROGRESS && poll(&ready, 1, kConnectMs) == 1 &&
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0 && error == 0)
        return fd;
    close(fd);
    return -1;
}

}  // namespace

struct Watchdog::State {
    int rank, num_ranks;
    double limit_s;
    const Comm* comm;
    std::vector<std::string> hosts;
    std::atomic<int64_t> step{0};
    std::atomic<Phase> phase{Phase::start};

    // What is known of a rank. On other ranks than 0 only peers[0] is used.
    struct Peer {
        int fd = -1;
        std::string unread;
        Beat last;
        double heard = 0;    // seconds_now()
        double entered = 0;  // its present phase, or wait, as far as was heard
        double closed = 0;   // since when its connection is; 0: open
        bool left = false;
    };
    std::vector<Peer> peers;
    double longest_step = 0, step_began = 0;
    int64_t newest_step = 0;

    std::thread thread;
    std::mutex mutex;
    std::condition_variable changed;
    bool stopping = false;

    Beat own() const {
        return {.rank = rank,
                .phase = phase.load(),
                .leaves = false,
                .ends_job = false,
                .step = step.load(),
                .waits = comm->waits(),
                .waits_for = comm->waits_for()};
    }

    void tell_all(const Beat& beat) {
        for (const Peer& peer : peers)
            if (peer.fd >= 0) send_all(peer.fd, beat);
    }

    [[noreturn]] void end_job(int who, const std::string& what) {
        const Peer& peer = peers[static_cast<size_t>(who)];
        std::fprintf(stderr,
                     "error: rank %d on %s %s: last heard of in step %lld, %s; all ranks end  hint: the same "
                     "command goes on from the newest checkpoint\n",
                     who, hosts[static_cast<size_t>(who)].c_str(), what.c_str(),
                     static_cast<long long>(peer.last.step), kPhases[static_cast<int>(peer.last.phase)]);
        std::fflush(stderr);
        // Nobody must take this rank for the one that died, and no launcher may leave the others waiting.
        Beat last = own();
        last.ends_job = true;
        tell_all(last);
        _exit(1);
    }

    void hear(int who, double now) {
        Peer& peer = peers[static_cast<size_t>(who)];
        if (peer.left) return;
        std::optional<Beat> beat;
        if (peer.closed == 0 && !receive_all(peer.fd, peer.unread, beat)) peer.closed = now;
        if (beat) {
            if (beat->ends_job) _exit(1);  // the line has been said
            if (!(*beat == peer.last)) peer.entered = now;
            peer.last = *beat;
            peer.heard = now;
            peer.left = beat->leaves;
        }
        if (peer.left) {
            shutdown(peer.fd, SHUT_WR);  // it waits for this
            return;
        }
        // One line: rank 0's, or rank 1's of rank 0. The launcher has ended the others by the time they look.
        const double patience = rank > 1 ? 5.0 * rank : 0;
        if (peer.closed > 0 && now - peer.closed >= patience) end_job(who, "has died");
        if (now - peer.heard > limit_s + patience)
            end_job(who, cat({"has been silent for ", static_cast<int64_t>(now - peer.heard), " s"}));
    }

    // Within a step everybody waits for whoever hangs, so nobody goes on. It is the one whom most wait for,
    // as far as they can tell; who tells of others does not hang.
    void find_stalled(double now) {
        for (const Peer& peer : peers) {
            if (peer.last.step <= newest_step) continue;
            // What comes before the first one is no step.
            if (newest_step > 0) longest_step = std::max(longest_step, now - step_began);
            newest_step = peer.last.step;
            step_began = now;
        }
        if (longest_step == 0) return;  // nothing to compare with yet
        const double bound = std::max(limit_s, kFactor * longest_step);
        std::vector<int> blame(static_cast<size_t>(num_ranks));
        for (int who = 0; who < num_ranks; ++who) {
            const Peer& peer = peers[static_cast<size_t>(who)];
            const bool in_step = peer.last.phase >= Phase::data && peer.last.phase <= Phase::update;
            if (peer.left || !in_step || now - peer.entered < bound) return;
            const bool waits = peer.last.waits % 2 != 0;
            int& own = blame[static_cast<size_t>(who)];
            own += waits ? 0 : num_ranks;  // computing, for far too long
            if (waits && peer.last.waits_for != Comm::kNobody) {
                own -= num_ranks;
                ++blame[static_cast<size_t>(peer.last.waits_for)];
            }
        }
        const auto most = std::max_element(blame.begin(), blame.end());
        end_job(static_cast<int>(most - blame.begin()),
                cat({"keeps the others waiting for ", static_cast<int64_t>(bound), " s"}));
    }

    void look_as_first(double now, bool beats) {
        Peer& self = peers[0];
        const Beat beat = own();
        if (!(beat == self.last)) self.entered = now;
        self.last = beat;
        for (int who = 1; who < num_ranks; ++who) {
            hear(who, now);
            const Peer& peer = peers[static_cast<size_t>(who)];
            if (beats && !peer.left) send_all(peer.fd, beat);
        }
        find_stalled(now);
    }

    void run() {
        std::unique_lock lock(mutex);
        const auto look = std::chrono::milliseconds(kLookMs);
        Beat said;
        double looked = seconds_now();
        for (int looks = 0; !changed.wait_for(lock, look, [&] { return stopping; }); ++looks) {
            const double now = seconds_now();
            // Who was stopped itself (job control, a suspended batch job) has not listened.
            if (now - looked > limit_s / 2)
                for (Peer& peer : peers) peer.heard = peer.entered = now;
            looked = now;
            // News at once, the rest once a second.
            const bool beats = looks % kLooksABeat == 0 || !(own() == said);
            said = own();
            if (rank == 0) {
                look_as_first(now, beats);
                continue;
            }
            if (beats) send_all(peers[0].fd, own());
            hear(0, now);
        }
        Beat farewell = own();
        farewell.leaves = true;
        tell_all(farewell);
        // A connection that is closed with something unread takes what is still on its way with it.
        const double deadline = seconds_now() + 2;
        for (const Peer& peer : peers) {
            if (peer.fd < 0) continue;
            shutdown(peer.fd, SHUT_WR);
            char ignored[256];
            pollfd ready = {peer.fd, POLLIN, 0};
            while (seconds_now() < deadline && poll(&ready, 1, kLookMs) >= 0 &&
                   (ready.revents == 0 || recv(peer.fd, ignored, sizeof ignored, MSG_DONTWAIT) > 0)) {
            }
        }
    }

    void listen_to_all(Comm& comm) {
        const int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        sockaddr_in any = {};
        any.sin_family = AF_INET;
        socklen_t length = sizeof any;
        const bool listening = listener >= 0 &&
                               bind(listener, reinterpret_cast<const sockaddr*>(&any), sizeof any) == 0 &&
                               listen(listener, num_ranks) == 0 &&
                               getsockname(listener, reinterpret_cast<sockaddr*>(&any), &length) == 0;
        if (!listening) {
            fail_input({.what = "cannot listen for the other ranks' heartbeats",
                        .actual = std::strerror(errno),
                        .hint = "--watchdog 0 does without"});
        }
        std::string text = cat({ntohs(any.sin_port)});
        for (const std::string& address : own_addresses()) text += cat({" ", address});
        broadcast_text(comm, text, 0);
        const double deadline = seconds_now() + limit_s;
        for (int missing = num_ranks - 1; missing > 0;) {
            pollfd ready = {listener, POLLIN, 0};
            if (seconds_now() > deadline) {
                fail_input({.what = "ranks have not reached rank 0 by TCP",
                            .where = hosts[0],
                            .expected = cat({num_ranks - 1, " connections"}),
                            .actual = cat({num_ranks - 1 - missing}),
                            .hint = "open the network between the hosts, or --watchdog 0"});
            }
            if (poll(&ready, 1, 100) != 1) continue;
            const int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
            if (fd < 0) continue;
            // The first message says who it is; a stranger who says nothing sensible is not one of us.
            Beat hello;
            timeval patience = {2, 0};
            setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
            const bool whole =
                recv(fd, &hello, sizeof hello, MSG_WAITALL) == static_cast<ssize_t>(sizeof hello);
            if (!whole || hello.rank < 1 || hello.rank >= num_ranks ||
                peers[static_cast<size_t>(hello.rank)].fd >= 0) {
                close(fd);
                continue;
            }
            send_at_once(fd);
            peers[static_cast<size_t>(hello.rank)].fd = fd;
            --missing;
        }
        close(listener);
    }

    void connect_to_first(Comm& comm) {
        std::istringstream text(broadcast_text(comm, "", 0));
        int port = 0;
        std::string address, tried;
        text >> port;
        const bool same_host = hosts[0] == hosts[static_cast<size_t>(rank)];
        while (peers[0].fd < 0 && text >> address) {
            if (!same_host && address == "127.0.0.1") continue;
            peers[0].fd = connect_to(address, port);
            tried += cat({tried.empty() ? "" : ", ", address, ":", port});
        }
        if (peers[0].fd >= 0) send_at_once(peers[0].fd);
        if (peers[0].fd < 0 || !send_all(peers[0].fd, own())) {
            fail_input({.what = cat({"rank ", rank, " on ", hosts[static_cast<size_t>(rank)],
                                     " cannot reach rank 0 by TCP"}),
                        .where = hosts[0],
                        .expected = "an answer at one of its addresses",
                        .actual = cat({"none at ", tried}),
                        .hint = "open the network between the hosts, or --watchdog 0"});
        }
    }
};

Watchdog::Watchdog(Comm& comm, double limit_s) {
    if (comm.size() == 1 || limit_s <= 0) return;
    state_ = std::make_unique<State>();
    State& s = *state_;
    s.rank = comm.rank(), s.num_ranks = comm.size(), s.limit_s = limit_s, s.comm = &comm;
    for (int r = 0; r < comm.size(); ++r) s.hosts.push_back(comm.host(r));
    s.peers.resize(static_cast<size_t>(s.rank == 0 ? s.num_ranks : 1));
    s.rank == 0 ? s.listen_to_all(comm) : s.connect_to_first(comm);
    comm.barrier();
    const double now = seconds_now();
    for (State::Peer& peer : s.peers) peer.heard = peer.entered = now;
    s.thread = std::thread([&s] { s.run(); });
}

Watchdog::~Watchdog() {
    if (!state_) return;
    {
        const std::lock_guard lock(state_->mutex);
        state_->stopping = true;
        state_->changed.notify_all();
    }
    state_->thread.join();
    for (State::Peer& peer : state_->peers)
        if (peer.fd >= 0) close(peer.fd);
}

void Watchdog::enter(Phase phase, int64_t step) {
    if (!state_) return;
    state_->step = step;
    state_->phase = phase;
}
