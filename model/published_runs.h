// Trainings whose speed others have published, to hold scaling_plan's predictions against.
#pragma once
#include <vector>

#include "model/scaling_plan.h"

struct PublishedRun {
    const char* trainer;
    const char* model;
    PaperRun run;
    double tokens_per_second;  // of one GPU
    const char* source;        // file in the trainer's repository, pull request
    const char* remark;        // what the prediction knows nothing of
    bool fitted = false;       // used to choose kSustained and kTileSeconds; the others test them
};
const std::vector<PublishedRun>& published_runs();
double prediction_error(const PublishedRun& published);  // predicted / published - 1
