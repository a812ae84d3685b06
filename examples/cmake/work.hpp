#pragma once

#include <cstdint>

std::uint32_t work(const char *text);
