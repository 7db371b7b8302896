// Events of a warp that tests/emulator counts, at no cost on a GPU: see chip::note().
#pragma once

namespace timecycle::chip {

enum class Event { flush, insertion, write, count };

}  // namespace timecycle::chip
