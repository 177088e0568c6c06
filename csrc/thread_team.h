// Persistent threads that work through the stages of a job, with as little between two stages as possible.
//
// A job is a sequence of stages; a stage is a number of tasks that may run in any order and at once; a stage begins
// when all tasks of the one before it are done. Threads claim tasks, so nobody waits for a thread that the operating
// system has put aside between two tasks: the others do its share. Which thread runs a task must not matter.
//
// The whole state of a running job is one word, (stage, unclaimed tasks). A claim is a compare-and-swap on it. Whoever
// holds a task knows that its stage cannot end, so whatever describes the job stays put until the task is done.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace pellucid {

class Job {
public:
    virtual ~Job() = default;
    virtual uint32_t num_stages() const = 0;
    // May be 0: the stage is then skipped. Called once per stage, when the stage before it is done.
    virtual uint32_t num_tasks(uint32_t stage) = 0;
    // `thread` < ThreadTeam::size() names the caller's private scratch memory. Must not throw.
    virtual void run(uint32_t stage, uint32_t task, uint32_t thread) noexcept = 0;
};

class ThreadTeam {
public:
    // The calling thread of `run` is one of `num_threads`, so num_threads - 1 are started.
    // Throws std::invalid_argument unless 1 <= num_threads <= 1024.
    explicit ThreadTeam(uint32_t num_threads);
    ~ThreadTeam();
    ThreadTeam(const ThreadTeam&) = delete;
    ThreadTeam& operator=(const ThreadTeam&) = delete;

    uint32_t size() const { return static_cast<uint32_t>(workers_.size()) + 1; }

    // Returns when all stages are done. One job at a time: a second caller waits for the first.
    void run(Job& job);

private:
    void work(uint32_t thread);
    bool claim_and_run(uint64_t state, uint32_t thread);
    void start_stage_from(uint32_t stage);
    void sleep_until_next_job(uint32_t epoch);

    // Each on its own cache line: `state_` is written at every claim, `finished_` at every completion.
    alignas(64) std::atomic<uint64_t> state_;
    alignas(64) std::atomic<uint32_t> finished_{0};  // tasks of the current stage
    alignas(64) std::atomic<uint32_t> epoch_{0};     // jobs started so far
    std::atomic<bool> stopping_{false};
    Job* job_ = nullptr;        // valid while a task of it is held
    uint32_t stage_tasks_ = 0;  // likewise
    std::mutex one_job_;
    std::mutex sleep_mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
};

}  // namespace pellucid
