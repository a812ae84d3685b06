"""The scripts that bash, zsh and fish read: they ask the program what there is, and hand it to the shell."""

from collections.abc import Mapping
from typing import Final

_BASH: Final = r"""# bash completion of staticcall
_staticcall_completion() {
    local kind value help
    COMPREPLY=()
    while IFS=$'\t' read -r kind value help; do
        case $kind in
            file) compopt -o default 2>/dev/null ;;
            dir) compopt -o dirnames 2>/dev/null ;;
            open) compopt -o nospace 2>/dev/null; COMPREPLY+=("$value") ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(
        _STATICCALL_COMPLETE=bash _STATICCALL_BEFORE="${COMP_LINE:0:COMP_POINT}" \
            _STATICCALL_AFTER="${COMP_LINE:COMP_POINT}" _STATICCALL_BREAKS="$COMP_WORDBREAKS" \
            "$1" 2>/dev/null </dev/null
    )
}
complete -o nosort -F _staticcall_completion staticcall 2>/dev/null ||
    complete -F _staticcall_completion staticcall
"""

_ZSH: Final = r"""#compdef staticcall
_staticcall() {
    local kind value help before after files=''
    local -a plain open told
    before="${words[1,CURRENT-1]} $PREFIX"
    after="$SUFFIX ${words[CURRENT+1,-1]}"
    while IFS=$'\t' read -r kind value help; do
        case $kind in
            file|dir) files=$kind ;;
            open) open+=("$value") ;;
            plain) if [[ -n $help ]]; then told+=("${value//:/\\:}:$help"); else plain+=("$value"); fi ;;
        esac
    done < <(
        _STATICCALL_COMPLETE=zsh _STATICCALL_BEFORE="$before" _STATICCALL_AFTER="$after" \
            "${words[1]}" 2>/dev/null </dev/null
    )
    [[ $PREFIX == --*=* ]] && compset -P 1 '*='
    case $files in
        file) _files ;;
        dir) _files -/ ;;
    esac
    (( $#open )) && compadd -S '' -a open
    (( $#plain )) && compadd -a plain
    (( $#told )) && _describe 'staticcall' told
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _staticcall "$@"
else
    compdef _staticcall staticcall
fi
"""

_FISH: Final = r"""# fish completion of staticcall
function __staticcall_complete
    set -l words (commandline -xpc 2>/dev/null; or commandline -opc)
    set -l before (commandline -pc | string collect)
    set -l all (commandline -p | string collect)
    set -l after (string sub -s (math (string length -- "$before") + 1) -- "$all" | string collect)
    env _STATICCALL_COMPLETE=fish _STATICCALL_BEFORE="$before" _STATICCALL_AFTER="$after" \
            $words[1] 2>/dev/null </dev/null | while read -l -d \t kind value help
        switch $kind
            case file dir
                set -l parts (string match -r -- '^((?:--[^=]*=)?)(.*)$' "$value")
                for path in (__fish_complete_path "$parts[3]")
                    printf '%s\n' "$parts[2]$path"
                end
            case open plain
                printf '%s\t%s\n' $value $help
        end
    end
end
complete --command staticcall --no-files --arguments '(__staticcall_complete)'
"""

SCRIPTS: Final[Mapping[str, str]] = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
