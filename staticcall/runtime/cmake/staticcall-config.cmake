# Static calls in CMake, for the Makefile and Ninja generators:
#
#     find_package(staticcall REQUIRED CONFIG)     with -Dstaticcall_DIR=$(staticcall --cmake-dir)
#
#     staticcall::headers              staticcall.h
#     staticcall::runtime              what updates need, a static library, built with the project
#     staticcall::runtime_shared       the same as libstaticcall.so, for programs whose libraries have static calls too
#
#     staticcall_annotate(target...)   the objects of these targets get their table when they are compiled
#     staticcall_align(target...)      options that make every site one that the default policy patches
#     staticcall_prefix(target...)     options that make every site one for POLICY torvalds
#     staticcall_bind(target [KEY=TARGET...] [POLICY policy])
#                                      patches what was linked: sites go straight to where their keys lead, and keys
#                                      to other functions where that is said
#
# STATICCALL_EXECUTABLE is the tool, found on the path. License: Apache-2.0

cmake_policy(PUSH)
cmake_policy(VERSION 3.16...3.25)

get_filename_component(_staticcall_root "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
set(STATICCALL_COMPILE_LAUNCHER "${_staticcall_root}/make/staticcall-compile")
find_program(STATICCALL_EXECUTABLE staticcall DOC "The staticcall tool")
get_property(_staticcall_languages GLOBAL PROPERTY ENABLED_LANGUAGES)
if(NOT STATICCALL_EXECUTABLE)
  set(staticcall_FOUND FALSE)
  set(staticcall_NOT_FOUND_MESSAGE "there is no staticcall on the path: give -DSTATICCALL_EXECUTABLE=")
elseif(NOT "C" IN_LIST _staticcall_languages)
  set(staticcall_FOUND FALSE)
  set(staticcall_NOT_FOUND_MESSAGE "the runtime is C: add C to the languages of project()")
elseif(NOT CMAKE_GENERATOR MATCHES "Makefiles|Ninja")
  set(staticcall_FOUND FALSE)
  set(staticcall_NOT_FOUND_MESSAGE "${CMAKE_GENERATOR} has no compiler launchers: use Makefiles or Ninja")
endif()

if(NOT TARGET staticcall::headers)
  add_library(staticcall::headers INTERFACE IMPORTED GLOBAL)
  target_include_directories(staticcall::headers INTERFACE "${_staticcall_root}/include")
endif()

# Makes one of the two runtimes, unless another directory of the project did.
function(_staticcall_runtime name kind)
  if(TARGET staticcall_${name} OR NOT "C" IN_LIST _staticcall_languages)
    return()
  endif()
  find_package(Threads REQUIRED)
  add_library(staticcall_${name} ${kind} EXCLUDE_FROM_ALL "${_staticcall_root}/staticcall.c")
  set_target_properties(staticcall_${name} PROPERTIES
    OUTPUT_NAME staticcall C_STANDARD 11 POSITION_INDEPENDENT_CODE ON)
  target_link_libraries(staticcall_${name} PUBLIC staticcall::headers PRIVATE Threads::Threads)
  add_library(staticcall::${name} ALIAS staticcall_${name})
endfunction()

_staticcall_runtime(runtime STATIC)
_staticcall_runtime(runtime_shared SHARED)
unset(_staticcall_languages)

# Stops where a target is not one of these types.
function(_staticcall_check caller target)
  if(NOT TARGET ${target})
    message(FATAL_ERROR "${caller}: there is no target ${target}")
  endif()
  get_target_property(type ${target} TYPE)
  get_target_property(imported ${target} IMPORTED)
  if(imported OR NOT type IN_LIST ARGN)
    message(FATAL_ERROR "${caller}: ${target} is of type ${type}, imported: ${imported}; one of ${ARGN} is needed")
  endif()
endfunction()

# A launcher and no rule of its own: the object is annotated by the command that makes it, so whatever makes CMake
# compile a file anew makes it annotate that file, and that one only. It stands in front of other launchers.
function(staticcall_annotate)
  foreach(target IN LISTS ARGN)
    _staticcall_check(staticcall_annotate ${target}
      EXECUTABLE STATIC_LIBRARY SHARED_LIBRARY MODULE_LIBRARY OBJECT_LIBRARY)
    get_target_property(lto ${target} INTERPROCEDURAL_OPTIMIZATION)
    if(lto)
      message(FATAL_ERROR "staticcall_annotate: ${target} has its code made by the linker "
        "(INTERPROCEDURAL_OPTIMIZATION), so there is none to annotate before")
    endif()
    get_target_property(launched ${target} STATICCALL_ANNOTATED)
    if(launched)
      continue()
    endif()
    get_target_property(others ${target} RULE_LAUNCH_COMPILE)
    if(NOT others)
      get_property(others DIRECTORY PROPERTY RULE_LAUNCH_COMPILE)
    endif()
    if(NOT others)
      get_property(others GLOBAL PROPERTY RULE_LAUNCH_COMPILE)
    endif()
    if(NOT others)
      set(others "")
    endif()
    set_target_properties(${target} PROPERTIES
      STATICCALL_ANNOTATED ON
      RULE_LAUNCH_COMPILE
      "env \"STATICCALL=${STATICCALL_EXECUTABLE}\" sh \"${STATICCALL_COMPILE_LAUNCHER}\" ${others}")
    target_link_libraries(${target} PRIVATE staticcall::headers)
  endforeach()
endfunction()

# Facts of the assembler: calls that may go by a PLT, as all of a PIE may, are aligned by the system's, not by clang's.
function(staticcall_align)
  foreach(target IN LISTS ARGN)
    _staticcall_check(staticcall_align ${target}
      EXECUTABLE STATIC_LIBRARY SHARED_LIBRARY MODULE_LIBRARY OBJECT_LIBRARY)
    target_compile_options(${target} PRIVATE
      -fno-optimize-sibling-calls
      -Wa,-malign-branch-boundary=64,-malign-branch=call+jmp,-malign-branch-prefix-size=5
      "$<$<OR:$<COMPILE_LANG_AND_ID:C,Clang>,$<COMPILE_LANG_AND_ID:CXX,Clang>>:-fno-integrated-as>")
  endforeach()
endfunction()

# The prefix is the linker's work: GNU ld takes the one asked for, lld always 67.
function(staticcall_prefix)
  foreach(target IN LISTS ARGN)
    _staticcall_check(staticcall_prefix ${target}
      EXECUTABLE STATIC_LIBRARY SHARED_LIBRARY MODULE_LIBRARY OBJECT_LIBRARY)
    target_compile_options(${target} PRIVATE -fno-optimize-sibling-calls -fno-plt)
    target_link_options(${target} PUBLIC LINKER:-z,call-nop=prefix-0x2e)
  endforeach()
endfunction()

# Behind the link and in the same rule: in place, by one rename, of a file that was proved.
function(staticcall_bind target)
  cmake_parse_arguments(PARSE_ARGV 1 bind "" "POLICY" "")
  _staticcall_check(staticcall_bind ${target} EXECUTABLE SHARED_LIBRARY MODULE_LIBRARY)
  set(options --quiet --in-place --bind)
  if(bind_POLICY)
    list(APPEND options --policy ${bind_POLICY})
  endif()
  foreach(change IN LISTS bind_UNPARSED_ARGUMENTS)
    if(NOT change MATCHES "^[^=]+=[^=]+$")
      message(FATAL_ERROR "staticcall_bind: ${change} is not KEY=TARGET")
    endif()
    list(APPEND options --set ${change})
  endforeach()
  add_custom_command(TARGET ${target} POST_BUILD
    COMMAND "${STATICCALL_EXECUTABLE}" patch ${options} "$<TARGET_FILE:${target}>"
    VERBATIM)
endfunction()

cmake_policy(POP)
