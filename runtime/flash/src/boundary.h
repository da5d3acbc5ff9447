// The boundary of the C interface: exceptions become statuses, pointers and sizes of structures are checked.
#pragma once

#include <exception>
#include <memory>
#include <new>
#include <system_error>

#include "handheld/flash.h"
#include "pack.h"
#include "status.h"

struct hh_flash_pack {
  std::shared_ptr<const handheld::flash::Pack> pack;
};

namespace handheld::flash {

// Keeps the message for hh_flash_last_error.
hh_flash_status note(hh_flash_status status, const char* message) noexcept;

template <typename Body>
hh_flash_status guarded(Body body) noexcept {
  try {
    body();
    return HH_FLASH_OK;
  } catch (const Error& error) {
    return note(error.status(), error.what());
  } catch (const std::bad_alloc&) {
    return note(HH_FLASH_OUT_OF_MEMORY, "The system refused memory.");
  } catch (const std::system_error& error) {
    return note(HH_FLASH_OUT_OF_MEMORY, error.what());
  } catch (const std::exception& error) {
    return note(HH_FLASH_INTERNAL, error.what());
  } catch (...) {
    return note(HH_FLASH_INTERNAL, "An unknown error.");
  }
}

template <typename... Pointers>
void require_pointers(const Pointers*... pointers) {
  const bool any_null = ((pointers == nullptr) || ...);
  if (any_null) fail(HH_FLASH_INVALID_ARGUMENT, "A required pointer is null.");
}

template <typename Struct>
void require_size(const Struct& given) {
  if (given.struct_bytes != sizeof(Struct)) {
    fail(HH_FLASH_INVALID_ARGUMENT, "struct_bytes is not the size that this version has: set it, and build with the "
                                    "header of the library in use.");
  }
}

}  // namespace handheld::flash
