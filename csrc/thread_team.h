// Persistent threads that work through the stages of a job, with as little between two stages as possible.
//
// A job is a sequence of stages; a stage is a number of tasks that may run in any order and at once; a stage begins
// when all tasks of the one before it are done. Every thread has a share of a stage's tasks, always the same stretch of
// them, and works through it in ascending order, so that it reads memory in order and finds in its own caches what it
// has left there. Whoever is done with that takes tasks from the end of another's share, so nobody waits for a thread
// that the operating system has put aside between two tasks. Which thread runs a task must not matter.
//
// The state of a share is one word: the stage it was last claimed from, and which of its tasks are left. A claim is a
// compare-and-swap on it; a share that bears an older stage is whole. Nobody but its owner touches it as a rule, so a
// claim costs next to nothing. Whoever holds a task, or has not yet reported it as done, knows that its stage cannot
// end, so whatever describes the job stays put.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace pellucid {

// Memory that threads will read in order, each from its own share on: `units` of `bytes` each, and if `apart` is not 0 as
// much again so many bytes further on.
struct Upcoming {
    const std::byte* data = nullptr;
    uint64_t units = 0, bytes = 0, apart = 0;
};

class Job {
public:
    virtual ~Job() = default;
    virtual uint32_t num_stages() const = 0;
    // May be 0: the stage is then skipped. Called once per stage, when the stage before it is done. At most
    // ThreadTeam::kMaxTasks per thread.
    virtual uint32_t num_tasks(uint32_t stage) = 0;
    // `thread` < ThreadTeam::size() names the caller's private scratch memory. Must not throw.
    virtual void run(uint32_t stage, uint32_t task, uint32_t thread) noexcept = 0;
    // What the stages after this one read first. Threads that wait for `stage` to end fetch it meanwhile.
    virtual Upcoming upcoming(uint32_t /*stage*/) { return {}; }
};

class ThreadTeam {
public:
    static constexpr uint32_t kMaxTasks = 65535;

    // The calling thread of `run` is one of `num_threads`, so num_threads - 1 are started.
    // Throws std::invalid_argument unless 1 <= num_threads <= 1024.
    explicit ThreadTeam(uint32_t num_threads);
    ~ThreadTeam();
    ThreadTeam(const ThreadTeam&) = delete;
    ThreadTeam& operator=(const ThreadTeam&) = delete;

    uint32_t size() const { return static_cast<uint32_t>(workers_.size()) + 1; }

    // The first task of a thread's share of a stage's `tasks`, among `threads`.
    static uint32_t first_of_share(uint32_t tasks, uint32_t thread, uint32_t threads) {
        return static_cast<uint32_t>(uint64_t{tasks} * thread / threads);
    }

    // Returns when all stages are done. One job at a time: a second caller waits for the first.
    void run(Job& job);

private:
    struct alignas(64) Share {
        std::atomic<uint64_t> state{0};
    };
    // Upcoming, to be read by threads that hold no task while it is replaced. A mixture of two does no harm.
    struct alignas(64) SharedUpcoming {
        std::atomic<const std::byte*> data{nullptr};
        std::atomic<uint64_t> units{0}, bytes{0}, apart{0};
    };
    class Fetcher;
    // A stage as threads see it before they hold a task of it. No two stages of a team have the same serial number, but
    // for those that are billions apart.
    struct Opened {
        uint32_t serial, tasks;  // no tasks: there is no job
    };

    void work(uint32_t thread);
    Opened opened() const;
    void open(uint32_t tasks);
    bool take_part(Opened opened, uint32_t thread);
    bool claim(Opened opened, uint32_t owner, bool from_end, uint32_t& task);
    void start_stage_from(uint32_t stage);
    void sleep_until_next_job(uint32_t epoch);

    // What all look at, what all write, and what few do, on cache lines of their own.
    alignas(64) std::atomic<uint64_t> opened_{0};
    alignas(64) std::atomic<uint32_t> finished_{0};  // tasks of the current stage
    alignas(64) std::atomic<uint32_t> epoch_{0};     // jobs started so far
    std::atomic<bool> stopping_{false};
    Job* job_ = nullptr;  // valid while a task of it is held
    uint32_t stage_ = 0;  // likewise
    const uint32_t size_;
    std::vector<Share> shares_;  // of each thread
    SharedUpcoming upcoming_;
    std::mutex one_job_;
    std::mutex sleep_mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
};

}  // namespace pellucid
