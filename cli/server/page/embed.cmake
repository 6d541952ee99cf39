# cmake -DDIR=cli/server/page -DOUT=page_embedded.c -P embed.cmake: writes the table that cli/server/page.h declares.
file(GLOB files ${DIR}/*.html ${DIR}/*.css ${DIR}/*.js ${DIR}/*.svg)
list(SORT files)
set(type_html "text/html; charset=utf-8")
set(type_css "text/css; charset=utf-8")
set(type_js "text/javascript; charset=utf-8")
set(type_svg "image/svg+xml")
set(texts "")
set(rows "")
set(n 0)
foreach(file ${files})
  get_filename_component(name ${file} NAME)
  string(REGEX REPLACE ".*\\." "" ext ${name})
  set(path "/page/${name}")
  if(name STREQUAL "index.html")
    set(path "/")
  endif()
  file(SHA256 ${file} tag)
  string(SUBSTRING ${tag} 0 16 tag)
  file(READ ${file} bytes HEX)
  string(REGEX REPLACE "(................................)" "\\1\n" bytes "${bytes}")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
  string(APPEND texts "static const unsigned char bytes_${n}[] = {\n${bytes}0};\n")
  string(APPEND rows "    {\"${path}\", \"${type_${ext}}\", \"\\\"${tag}\\\"\", bytes_${n}, sizeof bytes_${n} - 1},\n")
  math(EXPR n "${n} + 1")
endforeach()
file(WRITE ${OUT} "/* Made by cli/server/page/embed.cmake. */
#include \"server/page.h\"

${texts}
const struct cli_page_file cli_page_files[] = {
${rows}};
const size_t cli_page_n_files = ${n};
")
