# cmake -DDIR=shaders -DOUT=glsl_embedded.c -P embed.cmake: writes the table that shaders/vulkan/glsl.h declares.
file(GLOB files ${DIR}/*.comp ${DIR}/*.glsl)
list(SORT files)
set(texts "")
set(rows "")
set(n 0)
foreach(file ${files})
  get_filename_component(name ${file} NAME)
  file(READ ${file} bytes HEX)
  string(REGEX REPLACE "(................................)" "\\1\n" bytes "${bytes}")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
  string(APPEND texts "static const unsigned char text_${n}[] = {\n${bytes}0};\n")
  string(APPEND rows "    {\"${name}\", (const char *)text_${n}, sizeof text_${n} - 1},\n")
  math(EXPR n "${n} + 1")
endforeach()
# The last row keeps the table from being empty, which C does not know.
file(WRITE ${OUT} "/* Made by shaders/embed.cmake. */
#include \"glsl.h\"

${texts}
const struct vk_glsl_source vk_glsl_sources[] = {
${rows}    {NULL, NULL, 0},
};
const size_t vk_glsl_n_sources = ${n};
")
