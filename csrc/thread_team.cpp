#include "thread_team.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "pause.h"

namespace pellucid {

namespace {

constexpr uint32_t kMaxThreads = 1024;
// A stage is usually over within microseconds, and the next job follows the last after some tens of them.
constexpr int kPauses = 2000;                            // before giving the core to others, a few tens of microseconds
constexpr auto kAwake = std::chrono::microseconds(200);  // after a job, before going to sleep

// What is left of a share: tasks [begin, end) of it, in the stage of that serial number.
struct Left {
    uint32_t serial, begin, end;

    explicit Left(uint64_t word)
        : serial(static_cast<uint32_t>(word >> 32)), begin(word >> 16 & 0xffff), end(word & 0xffff) {}
    Left(uint32_t serial, uint32_t begin, uint32_t end) : serial(serial), begin(begin), end(end) {}
    uint64_t word() const { return uint64_t{serial} << 32 | begin << 16 | end; }
    bool is_newer_than(uint32_t other) const { return static_cast<int32_t>(serial - other) > 0; }
};

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

constexpr uint64_t kFetchBytes = 192 << 10;  // of what is upcoming; a part of a core's second level cache
constexpr uint64_t kFetchLines = 8;          // at a time
constexpr uint64_t kLine = 64;

}  // namespace

// Brings what one thread will read into its cache, a little at each call.
class ThreadTeam::Fetcher {
public:
    Fetcher(const ThreadTeam& team, uint32_t thread) : team_(team), thread_(thread) {}

    void fetch() {
        const std::byte* const data = team_.upcoming_.data.load(std::memory_order_relaxed);
        if (data != data_) begin(data);
        for (uint64_t i = 0; i < kFetchLines && done_ < bytes_; ++i, done_ += kLine) {
            __builtin_prefetch(next_ + done_, 0, 2);
            if (apart_) __builtin_prefetch(next_ + apart_ + done_, 0, 2);
        }
    }

private:
    void begin(const std::byte* data) {
        const SharedUpcoming& all = team_.upcoming_;
        const uint64_t units = all.units.load(std::memory_order_relaxed);
        const uint64_t bytes = all.bytes.load(std::memory_order_relaxed);
        const uint64_t first = units * thread_ / team_.size_, end = units * (thread_ + 1) / team_.size_;
        data_ = data;
        next_ = data + first * bytes;
        apart_ = all.apart.load(std::memory_order_relaxed);
        bytes_ = data ? std::min((end - first) * bytes, apart_ ? kFetchBytes / 2 : kFetchBytes) : 0;
        done_ = 0;
    }

    const ThreadTeam& team_;
    const uint32_t thread_;
    const std::byte* data_ = nullptr;
    const std::byte* next_ = nullptr;
    uint64_t apart_ = 0, bytes_ = 0, done_ = 0;
};

ThreadTeam::ThreadTeam(uint32_t num_threads) : size_(num_threads), shares_(num_threads) {
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
    if (opened().tasks == 0) return;  // nothing to do at all
    if (!workers_.empty()) {
        {
            std::lock_guard lock(sleep_mutex_);
            epoch_.fetch_add(1, std::memory_order_relaxed);
        }
        wake_.notify_all();  // no system call when nobody sleeps
    }
    Backoff backoff;
    Fetcher fetcher(*this, 0);
    for (;;) {
        const Opened now = opened();
        if (now.tasks == 0) return;
        if (take_part(now, 0)) {
            backoff.reset();
        } else {
            fetcher.fetch();
            backoff.wait();
        }
    }
}

void ThreadTeam::work(uint32_t thread) {
    Backoff backoff;
    Fetcher fetcher(*this, thread);
    auto idle_since = std::chrono::steady_clock::now();
    for (;;) {
        const uint32_t epoch = epoch_.load(std::memory_order_acquire);  // read before `opened_`: no job is missed
        const Opened now = opened();
        if (stopping_.load(std::memory_order_relaxed)) return;
        if (take_part(now, thread)) {
            backoff.reset();
            continue;
        }
        if (now.tasks != 0) fetcher.fetch();
        if (backoff.patient()) idle_since = std::chrono::steady_clock::now();
        backoff.wait();
        if (now.tasks == 0 && !backoff.patient() && std::chrono::steady_clock::now() - idle_since > kAwake) {
            sleep_until_next_job(epoch);
            backoff.reset();
        }
    }
}

void ThreadTeam::sleep_until_next_job(uint32_t epoch) {
    std::unique_lock lock(sleep_mutex_);
    wake_.wait(lock, [&] { return epoch_.load(std::memory_order_relaxed) != epoch; });
}

// Runs what can be claimed of a stage, and reports it. Whoever reports a stage's last task opens the next one.
bool ThreadTeam::take_part(Opened opened, uint32_t thread) {
    if (opened.tasks == 0) return false;
    uint32_t done = 0, task = 0;
    for (uint32_t i = 0; i < size_; ++i) {
        const uint32_t owner = thread + i < size_ ? thread + i : thread + i - size_;
        for (; claim(opened, owner, owner != thread, task); ++done) job_->run(stage_, task, thread);
    }
    if (done == 0) return false;
    if (finished_.fetch_add(done, std::memory_order_acq_rel) + done == opened.tasks) {
        finished_.store(0, std::memory_order_relaxed);
        start_stage_from(stage_ + 1);
    }
    return true;
}

bool ThreadTeam::claim(Opened opened, uint32_t owner, bool from_end, uint32_t& task) {
    const auto start = [&](uint32_t thread) { return first_of_share(opened.tasks, thread, size_); };
    const uint32_t first = start(owner);
    std::atomic<uint64_t>& state = shares_[owner].state;
    uint64_t word = state.load(std::memory_order_acquire);
    for (;;) {
        Left left(word);
        if (left.is_newer_than(opened.serial)) return false;  // the stage is over
        if (left.serial != opened.serial) left = {opened.serial, 0, start(owner + 1) - first};
        if (left.begin == left.end) return false;
        task = first + (from_end ? --left.end : left.begin++);
        if (state.compare_exchange_weak(word, left.word(), std::memory_order_acq_rel, std::memory_order_acquire))
            return true;
    }
}

ThreadTeam::Opened ThreadTeam::opened() const {
    const uint64_t word = opened_.load(std::memory_order_acquire);
    return {static_cast<uint32_t>(word >> 32), static_cast<uint32_t>(word)};
}

// Opens the first stage at or after `stage` that has tasks. Only one thread can be here: no task is out.
void ThreadTeam::start_stage_from(uint32_t stage) {
    uint32_t tasks = 0;
    for (; stage < job_->num_stages() && tasks == 0; ++stage) tasks = job_->num_tasks(stage);
    stage_ = stage - 1;
    const Upcoming next = tasks == 0 ? Upcoming{} : job_->upcoming(stage_);
    upcoming_.units.store(next.units, std::memory_order_relaxed);
    upcoming_.bytes.store(next.bytes, std::memory_order_relaxed);
    upcoming_.apart.store(next.apart, std::memory_order_relaxed);
    upcoming_.data.store(next.data, std::memory_order_relaxed);
    const uint32_t serial = opened().serial + 1;
    opened_.store(uint64_t{serial} << 32 | tasks, std::memory_order_release);
}

}  // namespace pellucid
