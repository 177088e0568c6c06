#include "thread_team.h"

#include <chrono>
#include <stdexcept>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pellucid {

namespace {

constexpr uint32_t kNoStage = UINT32_MAX;
constexpr uint32_t kMaxThreads = 1024;
// A stage is usually over within microseconds, and the next job follows the last after some tens of them.
constexpr int kPauses = 2000;                            // before giving the core to others, a few tens of microseconds
constexpr auto kAwake = std::chrono::microseconds(200);  // after a job, before going to sleep

constexpr uint64_t pack(uint32_t stage, uint32_t unclaimed) { return uint64_t{stage} << 32 | unclaimed; }
constexpr uint32_t stage_of(uint64_t state) { return static_cast<uint32_t>(state >> 32); }
constexpr uint32_t unclaimed(uint64_t state) { return static_cast<uint32_t>(state); }
constexpr uint64_t kIdle = pack(kNoStage, 0);

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Waits politely: a short while on the core, then by letting others have it, who may be what we wait for.
class Backoff {
public:
    void wait() {
        if (rounds_ < kPauses) {
            ++rounds_;
            pause();
        } else {
            std::this_thread::yield();
        }
    }
    bool patient() const { return rounds_ < kPauses; }
    void reset() { rounds_ = 0; }

private:
    int rounds_ = 0;
};

}  // namespace

ThreadTeam::ThreadTeam(uint32_t num_threads) : state_(kIdle) {
    if (num_threads < 1 || num_threads > kMaxThreads) {
        throw std::invalid_argument("a thread team has 1 to 1024 threads");
    }
    for (uint32_t thread = 1; thread < num_threads; ++thread) {
        workers_.emplace_back([this, thread] { work(thread); });
    }
}

ThreadTeam::~ThreadTeam() {
    {
        std::lock_guard lock(sleep_mutex_);
        stopping_ = true;
        ++epoch_;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
}

void ThreadTeam::run(Job& job) {
    std::lock_guard only_one(one_job_);
    job_ = &job;
    start_stage_from(0);
    if (state_.load(std::memory_order_relaxed) == kIdle) return;  // nothing to do at all
    if (!workers_.empty()) {
        {
            std::lock_guard lock(sleep_mutex_);
            epoch_.fetch_add(1, std::memory_order_relaxed);
        }
        wake_.notify_all();  // no system call when nobody sleeps
    }
    Backoff backoff;
    for (;;) {
        const uint64_t state = state_.load(std::memory_order_acquire);
        if (state == kIdle) return;
        if (claim_and_run(state, 0)) {
            backoff.reset();
        } else {
            backoff.wait();
        }
    }
}

void ThreadTeam::work(uint32_t thread) {
    Backoff backoff;
    auto idle_since = std::chrono::steady_clock::now();
    for (;;) {
        const uint32_t epoch = epoch_.load(std::memory_order_acquire);  // read before `state_`: no job is missed
        const uint64_t state = state_.load(std::memory_order_acquire);
        if (stopping_.load(std::memory_order_relaxed)) return;
        if (claim_and_run(state, thread)) {
            backoff.reset();
            continue;
        }
        if (backoff.patient()) idle_since = std::chrono::steady_clock::now();
        backoff.wait();
        if (state == kIdle && !backoff.patient() && std::chrono::steady_clock::now() - idle_since > kAwake) {
            sleep_until_next_job(epoch);
            backoff.reset();
        }
    }
}

void ThreadTeam::sleep_until_next_job(uint32_t epoch) {
    std::unique_lock lock(sleep_mutex_);
    wake_.wait(lock, [&] { return epoch_.load(std::memory_order_relaxed) != epoch; });
}

// Runs one task if there is one to claim; whoever finishes a stage's last task opens the next stage.
bool ThreadTeam::claim_and_run(uint64_t state, uint32_t thread) {
    if (unclaimed(state) == 0) return false;
    if (!state_.compare_exchange_strong(state, state - 1, std::memory_order_acq_rel, std::memory_order_relaxed)) {
        return true;  // somebody was faster; look again at once
    }
    const uint32_t stage = stage_of(state);
    const uint32_t tasks = stage_tasks_;
    job_->run(stage, unclaimed(state) - 1, thread);
    if (finished_.fetch_add(1, std::memory_order_acq_rel) + 1 == tasks) {
        finished_.store(0, std::memory_order_relaxed);
        start_stage_from(stage + 1);
    }
    return true;
}

// Opens the first stage at or after `stage` that has tasks. Only one thread can be here: no task is out.
void ThreadTeam::start_stage_from(uint32_t stage) {
    for (; stage < job_->num_stages(); ++stage) {
        stage_tasks_ = job_->num_tasks(stage);
        if (stage_tasks_ > 0) {
            state_.store(pack(stage, stage_tasks_), std::memory_order_release);
            return;
        }
    }
    state_.store(kIdle, std::memory_order_release);
}

}  // namespace pellucid
