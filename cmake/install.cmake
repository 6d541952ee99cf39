# `cmake --install build/release`, and a Debian package by `cpack -G DEB` in the build folder.
include(GNUInstallDirs)
if(TARGET dllama-vk)
  install(TARGETS dllama-vk RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
# systemd looks for units below /usr/local, too.
install(FILES ${CMAKE_CURRENT_LIST_DIR}/dllama-vk-worker.service DESTINATION lib/systemd/system)
install(FILES ${CMAKE_CURRENT_LIST_DIR}/sysusers.conf DESTINATION lib/sysusers.d RENAME dllama-vk.conf)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR} RENAME copyright)
install(FILES README.md DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(CPACK_PACKAGE_NAME dllama-vk)
set(CPACK_PACKAGE_CONTACT "dllama-vk contributors")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_GENERATOR TGZ)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS libvulkan1) # loaded at run time, if there
# What lies outside of the prefix is for the package alone: the options of the service, which are the administrator's to change.
set(CPACK_INSTALLED_DIRECTORIES ${CMAKE_CURRENT_LIST_DIR}/debian/root /)
set(CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA ${CMAKE_CURRENT_LIST_DIR}/debian/conffiles ${CMAKE_CURRENT_LIST_DIR}/debian/postinst)
include(CPack)
