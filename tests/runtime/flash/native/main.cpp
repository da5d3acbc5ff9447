#include <cstdio>
#include <cstring>
#include <exception>

#include "check.h"

// Runs all cases, or those whose name contains the argument.
int main(int argc, char** argv) {
  int failed = 0;
  int ran = 0;
  for (const check::Case& test : check::cases()) {
    if (argc > 1 && test.name.find(argv[1]) == std::string::npos) continue;
    ++ran;
    try {
      test.body();
    } catch (const std::exception& error) {
      ++failed;
      std::printf("FAILED %s\n  %s\n", test.name.c_str(), error.what());
    }
  }
  std::printf("%d of %d cases passed\n", ran - failed, ran);
  return failed == 0 && ran > 0 ? 0 : 1;
}
