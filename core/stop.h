// Asking a long run to stop where it can: SIGINT, SIGTERM, SIGHUP and SIGUSR1 (what batch systems send ahead
// of an end, and mpirun passes on to all ranks) are noted, and the run looks between two pieces of its work.
// What was ignored at the start (nohup, a background job's SIGINT) stays ignored. A second SIGINT or SIGTERM
// ends the process at once; a closing terminal may send SIGHUP more than once.
//
// Who sends SIGTERM or SIGUSR1 wants the machine back, not an end: a run that has saved itself exits with 75,
// which asks for the same command again (sysexits.h: "temporary failure, try again"). scripts/launch/ does.
#pragma once

// SIGPIPE: a reader of our messages that died (`2>&1 | tee log` and Ctrl-C) must not take the run with it.
void ignore_dead_readers();
void watch_stop_signals();  // once, before the work
int stop_signal();          // the first one that came, 0 while none has
inline bool stop_asked() { return stop_signal() != 0; }

constexpr int kExitTryAgain = 75;  // EX_TEMPFAIL
int exit_code_after(int signal);   // of a run that saved itself: 75, or 128 + the signal for the user's own
