"""Hostile names, links and playlists."""

VICTIM = "{victim}"  # stands for a folder of the user, an absolute path
NAMES = (
    "..", ".", "../evil", "../../evil", f"{VICTIM}", f"{VICTIM}/evil", "a/../../evil", "a/..", "/", "//", "./..",
    "...", "", " ", "  x", "x ", "\t", "a\tb", "\n", "a\nb", "\r", "a\0b", "\x1b[31m", "\x7f", "*", "**", "?", "[a]",
    "~", "$HOME", "%s", "{name}", "`x`", "$(x)", ";x", "|x", "-rf", "--overwrite", "a\\..\\b", "..\\evil", "con",
    "NUL", "COM1.txt", "a:b", "x" * 300, "é" * 120, "e\u0301", "\u00e9", "\u202egpj.x", "\u200b", "\ufeffx", "Ａ",
    "\u2028", "ſ", "..\u2044x", "\udcff", "overlays", "OVERLAYS", "results.json", "written", ".written", ".lock",
    ".holder", ".hidden", ".x.123.partial", "x.partial", "global_results-val.csv", "#x", "'x'", '"x"', "x.mp4", "😀",
)  # fmt: skip

LINKS = (
    "data/JPEGImages", "data/Annotations", "data/JPEGImages/480p/made-crossing", "data/ImageSets/2017/val.txt",
    "data/JPEGImages/480p/made-crossing/00001.jpg", "data/Annotations/480p/made-crossing/00000.png",
    "data/JPEGImages/480p/made-crossing/00007.jpg", "out/made-crossing", "out/overlays", "out/overlays/made-crossing",
    "out/overlays/made-crossing.mp4", "out/results.json", "out/.written", "out/.written/made-crossing.json",
    "out/made-crossing/00001.png", "out/global_results-val.csv", "out/.lock", "out/.holder", "out/.x.1.partial",
    "out/.written/.tables.json", "out/overlays/made-crossing/00000.jpg", "out/.made-crossing.77.partial",
)  # fmt: skip
"""Places in a data set and in a results folder where a link to the user's files is put."""

PLAYLISTS = {
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n",
    "ffconcat": "ffconcat version 1.0\nfile '{path}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0"
    "\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
    'bandwidth="1"><BaseURL>{path}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "pls": "[playlist]\nFile1={path}\n",
    "edl": "# mpv EDL v0\n{path}\n",
    "url": "[InternetShortcut]\nURL=file://{path}\n",
    "svg": '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    '<image xlink:href="{path}" width="9" height="9"/></svg>',
    "vob.idx": "# VobSub index file, v7\nid: en, index: 0\n",
    "ram": "file://{path}\n",
}
"""Files that name another file to be played, by suffix."""
