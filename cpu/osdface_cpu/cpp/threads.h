// Loops on PyTorch's own threads, so that no second pool competes with them for the cores; where those are out
// of reach, on threads of the loop's own. Any number of callers may run loops at the same time.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

using Task = void (*)(void*);
using Fork = void (*)(Task, void*, unsigned, unsigned);  // the signature of OpenMP's GOMP_parallel

inline void spawn(Task task, void* data, unsigned count, unsigned) {
  std::vector<std::thread> others;
  others.reserve(count);
  try {
    for (unsigned i = 1; i < count; ++i) others.emplace_back(task, data);
  } catch (const std::system_error&) {  // no more threads: those that run take all parts
  }
  task(data);
  for (std::thread& other : others) other.join();
}

inline std::atomic<Fork> fork_team{spawn};

inline int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// work(begin, end, rank) over 0..count in at most `threads` parts of at least `grain`; ranks count the parts.
template <class Work>
void parallel_for(int64_t threads, int64_t count, int64_t grain, const Work& work) {
  struct Team {
    const Work& work;
    int64_t count, parts;
    std::atomic<int64_t> next;

    // Parts are claimed, not handed out: a team smaller than asked for does them all.
    static void run(void* data) {
      Team& team = *static_cast<Team*>(data);
      for (int64_t i; (i = team.next++) < team.parts;)
        team.work(i * team.count / team.parts, (i + 1) * team.count / team.parts, i);
    }
  };
  Team team{work, count, std::min(threads, parts_of(count, grain)), {0}};
  if (team.parts > 1)
    fork_team.load()(Team::run, &team, static_cast<unsigned>(team.parts), 0);
  else if (count > 0)
    work(0, count, 0);
}
