// Signals that ask for an end.
#include "core/stop.h"

#include <csignal>
#include <initializer_list>

namespace {

volatile std::sig_atomic_t first_signal = 0;

void on_signal(int signal) {
    if (first_signal == 0) first_signal = signal;
    // Who asks twice does not want to wait for a checkpoint.
    if (signal == SIGINT || signal == SIGTERM) std::signal(signal, SIG_DFL);
}

}  // namespace

void ignore_dead_readers() { std::signal(SIGPIPE, SIG_IGN); }

void watch_stop_signals() {
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGUSR1}) {
        struct sigaction now = {};
        sigaction(signal, nullptr, &now);
        if (now.sa_handler == SIG_IGN) continue;
        struct sigaction action = {};
        action.sa_handler = on_signal;
        action.sa_flags = SA_RESTART;
        sigaction(signal, &action, nullptr);
    }
}

int stop_signal() { return first_signal; }

int exit_code_after(int signal) {
    return signal == SIGTERM || signal == SIGUSR1 ? kExitTryAgain : 128 + signal;
}
