// Whole models: budgets, threads, cancellation, files that change underneath, hostile configurations.
#include "model.h"

#include <unistd.h>

#include <cmath>
#include <cstring>
#include <random>
#include <thread>

#include "check.h"
#include "half.h"
#include "json.h"
#include "model_writer.h"

using namespace handheld::flash;

namespace {

std::shared_ptr<const Pack> write_pack(const test::Model& layers, bool llama) {
  test::set_resident(layers, llama ? test::llama_tensors(layers) : test::opt_tensors(layers));
  return std::make_shared<const Pack>(layers.folder, true);
}

// A table of `rows` neurons over all layers.
ModelOptions small_options(const Pack& pack, uint32_t rows, hh_flash_mode mode = HH_FLASH_DENSE) {
  ModelOptions options = default_model_options();
  options.session.techniques &= ~static_cast<uint32_t>(HH_FLASH_INT8_HIDDEN);  // see test_session.cpp
  options.mode = mode;
  options.session.reader_threads = 3;
  options.session.chunk_bytes = 0;
  const ModelBudget budget(pack, ModelWeights(pack), options);
  options.session.budget_bytes = budget.floor_bytes + rows * budget.session.row_bytes;
  return options;
}

std::vector<uint32_t> text(size_t count) {
  std::vector<uint32_t> tokens(count);
  for (size_t i = 0; i < count; ++i) tokens[i] = static_cast<uint32_t>(i * 7 % test::kVocab);
  return tokens;
}

std::vector<float> logits_of(Model& model, const std::vector<uint32_t>& tokens) {
  std::vector<float> logits(tokens.size() * test::kVocab);
  model.decode(tokens, logits.data(), true);
  return logits;
}

int append(uint32_t token, void* tokens) {
  static_cast<std::vector<uint32_t>*>(tokens)->push_back(token);
  return 0;
}

int stop_at_once(uint32_t, void* calls) {
  ++*static_cast<int*>(calls);
  return 1;
}

}  // namespace

TEST(a_model_gives_the_same_whatever_is_resident_or_read_ahead) {
  for (const bool llama : {true, false}) {
    const test::Model layers = test::write_model(3);
    const auto pack = write_pack(layers, llama);
    ModelOptions options = small_options(*pack, 300);
    options.session.pinned_neurons = HH_FLASH_PIN_ALL;
    options.session.kernels = HH_FLASH_KERNELS_PORTABLE;
    Model whole(pack, options);
    const std::vector<float> want = logits_of(whole, text(20));
    for (const hh_flash_mode mode : {HH_FLASH_DENSE, HH_FLASH_EXACT}) {
      for (const uint32_t read_ahead : {0u, 1u}) {
        ModelOptions given = small_options(*pack, 40, mode);
        given.read_ahead = read_ahead;
        Model model(pack, given);
        CHECK(test::close(logits_of(model, text(20)), want));
        const hh_flash_decode_stats stats = model.stats();
        CHECK((stats.session.prefetched > 0) == (read_ahead == 1));
        CHECK(stats.session.held_peak_bytes <= stats.session.budget_bytes);
        CHECK(stats.position == 20 && stats.tokens == 20);
      }
    }
  }
}

TEST(generation_takes_the_likeliest_token_and_ends_when_told) {
  const test::Model layers = test::write_model(2);
  const auto pack = write_pack(layers, true);
  Model model(pack, small_options(*pack, 192));
  std::vector<uint32_t> tokens;
  model.generate(text(5), 12, append, &tokens);
  CHECK(!tokens.empty() && (tokens.size() == 12 || tokens.back() == 3));
  CHECK(model.stats().position == 5 + tokens.size() - 1);
  std::vector<uint32_t> all = text(5);
  all.insert(all.end(), tokens.begin(), tokens.end());
  model.truncate(0);
  const std::vector<float> logits = logits_of(model, all);
  for (size_t i = 0; i < tokens.size(); ++i) {
    const float* row = logits.data() + (4 + i) * test::kVocab;
    for (uint32_t other = 0; other < test::kVocab; ++other) CHECK(row[other] <= row[tokens[i]]);
  }
  int calls = 0;
  model.truncate(5);
  model.generate(text(3), 12, stop_at_once, &calls);
  CHECK(calls == 1 && model.stats().position == 8);
}

TEST(models_on_one_pack_share_their_tensors_and_do_not_disturb_each_other) {
  const test::Model layers = test::write_model(2);
  const auto pack = write_pack(layers, false);
  Model first(pack, small_options(*pack, 60));
  const std::vector<float> want = logits_of(first, text(25));
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (uint32_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      Model model(pack, small_options(*pack, 20 + 60 * t, t == 1 ? HH_FLASH_EXACT : HH_FLASH_DENSE));
      for (int round = 0; round < 3; ++round) {
        if (!test::close(logits_of(model, text(25)), want)) ++wrong;
        model.reset();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
  CHECK(pack->model_weights() == pack->model_weights());
}

TEST(cancelling_from_another_thread_ends_a_token_and_keeps_the_text) {
  const test::Model layers = test::write_model(4, 64, 1000);
  const auto pack = write_pack(layers, true);
  for (const hh_flash_mode mode : {HH_FLASH_DENSE, HH_FLASH_EXACT}) {
    Model model(pack, small_options(*pack, 50, mode));
    const std::vector<float> want = logits_of(model, text(6));
    for (int round = 0; round < 12; ++round) {
      std::thread other([&] {
        std::this_thread::sleep_for(std::chrono::microseconds(300 * round));
        model.cancel();
      });
      hh_flash_status status = HH_FLASH_OK;
      while (status == HH_FLASH_OK) {
        model.truncate(6);
        status = check::status_of([&] { logits_of(model, text(30)); });
      }
      other.join();
      CHECK(status == HH_FLASH_CANCELLED);
      CHECK(model.stats().position == 6);
      model.resume();
      model.truncate(5);
      std::vector<float> again(test::kVocab);
      model.decode({text(6).data() + 5, 1}, again.data(), false);
      CHECK(test::close(again, {want.end() - test::kVocab, want.end()}));
    }
  }
}

TEST(a_model_whose_file_shrinks_gives_a_status_and_keeps_the_text) {
  const test::Model layers = test::write_model(3);
  const auto pack = write_pack(layers, true);
  Model model(pack, small_options(*pack, 30));
  logits_of(model, text(4));
  CHECK(truncate((layers.folder + "/neurons.bin").c_str(), kPageBytes) == 0);
  for (int round = 0; round < 3; ++round) {
    CHECK(check::status_of([&] { logits_of(model, text(4)); }) == HH_FLASH_IO);
    CHECK(model.stats().position == 4);
  }
}

TEST(calls_of_a_session_drop_what_another_layer_reads_ahead) {
  const test::Model layers = test::write_model(3, 64, 1000);
  const auto pack = std::make_shared<const Pack>(layers.folder, true);
  Options options = default_options();
  options.techniques &= ~static_cast<uint32_t>(HH_FLASH_INT8_HIDDEN);
  options.reader_threads = 2;
  options.chunk_bytes = 0;
  options.budget_bytes = Budget(*pack, options).fixed_bytes + 200 * Budget(*pack, options).row_bytes;
  Session session(pack, options);
  std::vector<uint32_t> some(40);
  for (uint32_t i = 0; i < some.size(); ++i) some[i] = 3 * i;
  std::vector<float> y(64);
  for (uint32_t round = 0; round < 20; ++round) {
    const std::vector<float> x = layers.input(round);
    session.feed_forward(0, HH_FLASH_DENSE, x.data(), {}, true, y.data(), 1);
    CHECK(test::close(y, layers.output(0, x, nullptr)));
    // Layer 1 holds every buffer now.
    if (round % 4 == 0) session.prefetch(1, nullptr, some, false);
    if (round % 4 == 1) session.feed_forward(2, HH_FLASH_DENSE, x.data(), {}, true, y.data());
    if (round % 4 == 2) session.feed_forward(1, HH_FLASH_SELECTED, x.data(), some, false, y.data());
    session.feed_forward(1, HH_FLASH_EXACT, x.data(), {}, true, y.data(), 2);
    CHECK(test::close(y, layers.output(1, x, nullptr)));
    if (round % 5 == 0) session.reset();
  }
}

TEST(configurations_made_to_lie_are_refused_or_within_range) {
  const test::Model layers = test::write_model(2);
  const std::string good = test::config_of(test::llama_tensors(layers));
  static constexpr char kAlphabet[] = "{}[]\",:0123456789\\ eE-+.aehlmort\n";
  std::mt19937 random(5);
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string json = good;
    for (uint32_t c = 0; c < 1 + random() % 3; ++c) {
      const size_t at = random() % json.size();
      if (random() % 3 == 0) {
        json.erase(at, 1);
      } else {
        json[at] = random() % 4 == 0 ? static_cast<char>(random()) : kAlphabet[random() % (sizeof kAlphabet - 1)];
      }
    }
    try {
      const ModelConfig config =
          parse_model_config({reinterpret_cast<const uint8_t*>(json.data()), json.size()});
      ++accepted;
      CHECK(config.vocab > 0 && config.heads > 0 && config.heads % config.kv_heads == 0);
      CHECK(config.query_size() % 32 == 0 && config.norm_eps >= 0 && std::isfinite(config.norm_eps));
    } catch (const Error& error) {
      CHECK(error.status() == HH_FLASH_BAD_PACK);
    }
  }
  CHECK(accepted > 0 && accepted < 20000);
}

TEST(numbers_of_json_are_those_of_the_language) {
  const auto number = [](const std::string& json) {
    return JsonReader({reinterpret_cast<const uint8_t*>(json.data()), json.size()}, "test").number();
  };
  CHECK(number("1e-05") == 1e-05 && number("-0.25") == -0.25 && number("1E+3") == 1000 && number("0") == 0);
  CHECK(number("0.000001") == 0.000001 && number("1.0") == 1 && number(" 12.5e1") == 125);
  for (const char* bad : {"", "-", "1.", ".5", "1e", "1e999", "00", "99999999999999999999", "nan"}) {
    CHECK(check::status_of([&] { number(bad); }) == HH_FLASH_BAD_PACK);
  }
}

TEST(halves_come_back_and_floats_round_to_the_nearest) {
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const float value = half_to_float(static_cast<uint16_t>(bits));
    CHECK(float_to_half(value) == bits && float_to_half(-value) == (bits | 0x8000));
    const float next = bits == 0x7bff ? 65536.0f : half_to_float(static_cast<uint16_t>(bits + 1));
    const float middle = (value + next) / 2;
    CHECK(float_to_half(middle) == bits + (bits & 1));
    CHECK(float_to_half(std::nextafter(middle, 0.0f)) == bits);
    CHECK(float_to_half(std::nextafter(middle, 1e9f)) == bits + 1);
  }
  CHECK(float_to_half(INFINITY) == 0x7c00 && float_to_half(1e9f) == 0x7c00);
  CHECK((float_to_half(NAN) & 0x7fff) > 0x7c00);
}
