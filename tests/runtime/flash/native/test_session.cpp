// Sessions: results, threads, cancellation, files that change underneath.
#include "session.h"

#include <unistd.h>

#include <thread>

#include "check.h"
#include "writer.h"

using namespace handheld::flash;

namespace {

Options small_options(const Pack& pack, uint32_t rows) {
  Options options = default_options();
  // Its results depend, within a rounding, on which neurons are computed together; test_kernels.cpp has the bound.
  options.techniques &= ~static_cast<uint32_t>(HH_FLASH_INT8_HIDDEN);
  options.reader_threads = 3;
  options.chunk_bytes = 0;
  const Budget budget(pack, options);
  options.budget_bytes = budget.fixed_bytes + rows * budget.row_bytes;
  return options;
}

std::vector<float> run(Session& session, const test::Model& model, uint32_t layer, hh_flash_mode mode,
                       const std::vector<float>& x, const std::vector<uint32_t>& neurons = {}) {
  std::vector<float> y(model.layout.shape.d_model);
  session.feed_forward(layer, mode, x.data(), neurons, false, y.data());
  return y;
}

std::vector<uint32_t> every(uint32_t step, uint32_t first, uint32_t count) {
  std::vector<uint32_t> ids;
  for (uint32_t i = first; i < count; i += step) ids.push_back(i);
  return ids;
}

}  // namespace

TEST(every_dtype_gives_its_weights_products_in_every_mode) {
  for (const hh_flash_dtype dtype :
       {HH_FLASH_FP32, HH_FLASH_FP16, HH_FLASH_INT8, HH_FLASH_INT4, HH_FLASH_INT4M}) {
    const test::Model model = test::write_model(2, 96, 70, dtype);
    const auto pack = std::make_shared<const Pack>(model.folder, true);
    Session session(pack, small_options(*pack, 40));
    for (uint32_t token = 0; token < 4; ++token) {
      const std::vector<float> x = model.input(token);
      const std::vector<uint32_t> neurons = every(3, token, 70);
      CHECK(test::close(run(session, model, 0, HH_FLASH_DENSE, x), model.output(0, x, nullptr)));
      CHECK(test::close(run(session, model, 1, HH_FLASH_EXACT, x), model.output(1, x, nullptr)));
      session.reset();
      CHECK(test::close(run(session, model, 1, HH_FLASH_SELECTED, x, neurons), model.output(1, x, &neurons)));
    }
  }
}

TEST(sessions_on_one_pack_do_not_disturb_each_other) {
  const test::Model model = test::write_model();
  const auto pack = std::make_shared<const Pack>(model.folder, true);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (uint32_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      Session session(pack, small_options(*pack, 20 + 30 * t));
      for (uint32_t token = 0; token < 30; ++token) {
        for (uint32_t layer = 0; layer < model.layout.layer_count(); ++layer) {
          const std::vector<float> x = model.input(token * 7 + t);
          const hh_flash_mode mode = token % 3 == 0 ? HH_FLASH_DENSE : HH_FLASH_EXACT;
          if (!test::close(run(session, model, layer, mode, x), model.output(layer, x, nullptr))) ++wrong;
        }
      }
      const hh_flash_stats stats = session.stats();
      if (stats.held_peak_bytes > stats.budget_bytes) ++wrong;
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

TEST(a_prefetch_overlaps_other_layers_and_changes_no_result) {
  const test::Model model = test::write_model(3);
  const auto pack = std::make_shared<const Pack>(model.folder, true);
  Options options = small_options(*pack, 150);
  options.techniques &= ~static_cast<uint32_t>(HH_FLASH_COMPUTE_RESIDENT);
  Session session(pack, options);
  for (uint32_t token = 0; token < 40; ++token) {
    const std::vector<float> x = model.input(token);
    for (uint32_t layer = 0; layer < 3; ++layer) {
      // The guess for the next layer is half right.
      session.prefetch((layer + 1) % 3, nullptr, every(4, token % 4, model.layout.d_ff), false);
      const std::vector<uint32_t> needed = every(4, (token + layer) % 4, model.layout.d_ff);
      CHECK(test::close(run(session, model, layer, HH_FLASH_SELECTED, x, needed), model.output(layer, x, &needed)));
    }
  }
  CHECK(session.stats().prefetched > 0);
}

TEST(cancelling_from_another_thread_stops_the_session_and_resuming_goes_on) {
  const test::Model model = test::write_model(2, 64, 4000);
  const auto pack = std::make_shared<const Pack>(model.folder, true);
  Session session(pack, small_options(*pack, 100));
  const std::vector<float> x = model.input(1);
  const std::vector<float> expected = model.output(0, x, nullptr);
  for (int round = 0; round < 20; ++round) {
    std::thread other([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(200 * round));
      session.cancel();
    });
    hh_flash_status status = HH_FLASH_OK;
    while (status == HH_FLASH_OK) {
      status = check::status_of([&] {
        session.prefetch(1, nullptr, every(3, 0, 4000), false);
        run(session, model, 0, HH_FLASH_SELECTED, x, every(2, 0, 4000));
        run(session, model, 1, HH_FLASH_DENSE, x);
      });
    }
    other.join();
    CHECK(status == HH_FLASH_CANCELLED);
    session.resume();
    CHECK(test::close(run(session, model, 0, HH_FLASH_DENSE, x), expected));
    CHECK(test::close(run(session, model, 1, HH_FLASH_EXACT, x), model.output(1, x, nullptr)));
  }
}

TEST(a_file_that_shrinks_gives_a_status_and_leaves_the_table_whole) {
  const test::Model model = test::write_model();
  const auto pack = std::make_shared<const Pack>(model.folder, true);
  Session session(pack, small_options(*pack, 192));
  const std::vector<float> x = model.input(2);
  const std::vector<uint32_t> some = every(3, 0, model.layout.d_ff);
  run(session, model, 0, HH_FLASH_SELECTED, x, some);
  CHECK(truncate((model.folder + "/neurons.bin").c_str(), kPageBytes) == 0);
  const std::vector<uint32_t> others = every(3, 1, model.layout.d_ff);
  CHECK(check::status_of([&] { run(session, model, 0, HH_FLASH_SELECTED, x, others); }) == HH_FLASH_IO);
  CHECK(check::status_of([&] { run(session, model, 1, HH_FLASH_DENSE, x); }) == HH_FLASH_IO);
  session.prefetch(1, nullptr, others, false);
  CHECK(check::status_of([&] { run(session, model, 1, HH_FLASH_SELECTED, x, others); }) == HH_FLASH_IO);
  // What was read before is still right.
  CHECK(session.resident(0, {}) == some.size());
  CHECK(test::close(run(session, model, 0, HH_FLASH_SELECTED, x, some), model.output(0, x, &some)));
}

TEST(a_session_closes_while_its_prefetch_is_under_way) {
  const test::Model model = test::write_model(2, 64, 4000);
  const auto pack = std::make_shared<const Pack>(model.folder, true);
  for (int round = 0; round < 10; ++round) {
    Session session(pack, small_options(*pack, 8000));
    session.prefetch(1, nullptr, every(2, 0, 4000), false);
    if (round % 3 == 0) continue;
    session.choose_ahead(0, nullptr, every(3, 0, 4000), false);
    if (round % 3 == 1) session.begin_reads();
  }
}

TEST(what_was_chosen_ahead_is_what_the_layers_call_computes) {
  const test::Model model = test::write_model(3);
  const auto pack = std::make_shared<const Pack>(model.folder, true);
  for (const uint32_t rows : {6u, 60u, 288u}) {  // what finds no row is streamed
    for (const bool uring : {true, false}) {
      Options options = small_options(*pack, rows);
      options.techniques &= ~static_cast<uint32_t>(HH_FLASH_COMPUTE_RESIDENT);
      if (!uring) options.techniques &= ~static_cast<uint32_t>(HH_FLASH_IO_URING);
      Session session(pack, options);
      std::vector<float> y(model.layout.shape.d_model);
      for (uint32_t token = 0; token < 30; ++token) {
        const std::vector<float> x = model.input(token);
        for (uint32_t layer = 0; layer < 3; ++layer) {
          const std::vector<uint32_t> chosen = every(3 + layer, token % 3, model.layout.d_ff);
          session.choose_ahead(layer, nullptr, chosen, false);
          if (token % 2 == 0) session.begin_reads();
          session.feed_forward(layer, HH_FLASH_SELECTED, x.data(), {}, true, y.data());
          CHECK(test::close(y, model.output(layer, x, &chosen)));
        }
      }
      const hh_flash_stats stats = session.stats();
      CHECK(stats.prefetched > 0 && stats.prefetched == stats.neurons_loaded);
      CHECK(stats.held_peak_bytes <= stats.budget_bytes);
    }
  }
}

TEST(what_was_chosen_ahead_and_is_not_asked_for_leaves_the_table_whole) {
  const test::Model model = test::write_model(2, 64, 1000);
  const auto pack = std::make_shared<const Pack>(model.folder, true);
  Options options = small_options(*pack, 1200);
  options.window_tokens = HH_FLASH_WINDOW_UNLIMITED;
  options.techniques &= ~static_cast<uint32_t>(HH_FLASH_COMPUTE_RESIDENT);
  Session session(pack, options);
  const std::vector<uint32_t> some = every(20, 1, 1000);
  const std::vector<uint32_t> others = every(5, 0, 1000);
  for (uint32_t round = 0; round < 28; ++round) {
    const std::vector<float> x = model.input(round);
    CHECK(test::close(run(session, model, 1, HH_FLASH_SELECTED, x, some), model.output(1, x, &some)));
    const size_t resident = session.resident(1, {});
    session.choose_ahead(1, nullptr, others, false);
    if (round % 2 == 0) session.begin_reads();
    switch (round % 7) {
      case 0: session.drop_ahead(); break;
      case 1: CHECK(test::close(run(session, model, 0, HH_FLASH_DENSE, x), model.output(0, x, nullptr))); break;
      case 2: CHECK(test::close(run(session, model, 1, HH_FLASH_EXACT, x), model.output(1, x, nullptr))); break;
      case 3: CHECK(test::close(run(session, model, 1, HH_FLASH_SELECTED, x, some), model.output(1, x, &some))); break;
      case 4: session.prefetch(1, nullptr, some, false); break;
      case 5: session.choose_ahead(0, nullptr, some, false); break;
      default: session.cancel(); session.resume();
    }
    if (round % 7 == 2) {
      session.reset();
    } else {
      CHECK(session.resident(1, {}) == resident);
    }
  }
}

TEST(a_file_that_shrinks_fails_the_call_that_needs_what_was_chosen_ahead) {
  const test::Model model = test::write_model();
  const auto pack = std::make_shared<const Pack>(model.folder, true);
  Session session(pack, small_options(*pack, 192));
  const std::vector<float> x = model.input(2);
  std::vector<float> y(model.layout.shape.d_model);
  CHECK(truncate((model.folder + "/neurons.bin").c_str(), kPageBytes) == 0);
  for (const bool begun : {true, false}) {
    session.choose_ahead(1, nullptr, every(3, 1, model.layout.d_ff), false);
    if (begun) session.begin_reads();
    CHECK(check::status_of([&] {
            session.feed_forward(1, HH_FLASH_SELECTED, x.data(), {}, true, y.data());
          }) == HH_FLASH_IO);
    CHECK(session.resident(1, {}) == 0);
  }
}
